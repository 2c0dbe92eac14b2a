"""Questions, prompts, text and tokens: everything the trainer and the engine are fed.

Imports config and samples below it, reasoning-gym and tokenizers lazily; no torch, no engine. `sources` make or read
questions, `template` and `prompt_form` write one as the model sees it, `tokenizer` trains the tiny byte-level BPE,
`pretrain_text` writes documents, `prompts` feeds RL, `packing` lays tokens out for the trainer.
"""
