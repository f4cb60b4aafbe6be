"""diffusers pipelines and schedulers: inference only. They know `modeling/`, diffusers and transformers."""
