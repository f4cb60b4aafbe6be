"""What families truly share: attention, quantizers, conv codecs, posteriors, sampling and guidance."""
