"""Questions, prompts, text and tokens: everything the trainer and the engine are fed.

Imports config and samples below it, reasoning-gym and tokenizers lazily; no torch, no engine. `tasks` makes
questions and judges answers, `template` writes a question as the model sees it, `tokenizer` trains the tiny
byte-level BPE, `pretrain_text` writes documents, `prompts` feeds RL, `packing` lays tokens out for the trainer.
"""
