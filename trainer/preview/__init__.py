"""Sample pictures during a run. Reading prompts needs no torch; drawing them is `trainer.preview.sampling`."""

from trainer.preview.prompts import SamplePrompt, SampleRequest, parse_prompt, picture_name, read_prompts, settle

__all__ = ["SamplePrompt", "SampleRequest", "parse_prompt", "picture_name", "read_prompts", "settle"]
