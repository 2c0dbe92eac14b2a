"""r1mega: the training system behind DeepSeek-R1.

The report's pipeline, and where each part of it lives:

    report section         config                      stage                rooms
    (a tiny base)          tiny/r1_zero/0_base.toml    stages/pretrain.py   trainer, data
    2.2 R1-Zero            r1_zero/1_rl.toml           stages/grpo.py       rollout, rewards, algos, trainer, weights
    2.3 cold start         r1/1_cold_start.toml        stages/sft.py        data, trainer
        reasoning RL       r1/2_reasoning_rl.toml      stages/grpo.py
        kept answers       (docs/guides/rejection.md)  stages/rejection.py  rollout, rewards, endpoint
        the 800K samples   r1/4_sft_800k.toml          stages/sft.py
        preferences        r1/helpful_pairs.toml       stages/preferences.py   rollout, rewards (a judge), endpoint
        reward models      r1/helpful_rm.toml          stages/reward_model.py  data, trainer
        RL for all         r1/5_all_scenarios_rl.toml  stages/grpo.py
    2.4 distillation       distill/<student>.toml      stages/sft.py
    3   evaluation         tiny/r1_zero/2_eval.toml    stages/evaluate.py   rollout, evaluation

Equations: algos/advantage.py (Eq. 3), algos/grpo.py and algos/kl.py (Eq. 1-2). docs/architecture.md is the plan of
the house; imports go down its list of layers only.
"""
