"""DetailFlow: tokens from coarse to fine, whose number decides the size of the picture; and its prior."""
