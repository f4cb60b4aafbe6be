"""The models: one folder per family, what they truly share in `layers/`, and the base classes of the contract."""
