"""Laws of [health]: what cannot happen as it is set, or would do nothing."""

from r1mega.config.training import Health, Save

ACTING = ("skip", "drop_data", "roll_back")


def health_faults(health: Health, save: Save, *, num_steps: int, setting: str, whole: int = 1) -> list[str]:
    """
    Args:
        num_steps: of the stage; 0: its settings alone do not say.
        setting: what says so.
        whole: steps of a rollout, between which alone a run can go back; 1 where there are none.
    """
    faults, given = list[str](), health.model_fields_set
    if health.spike == "off":
        unused = [name for name in ("window", "loss_z", "grad_norm_z") if name in given]
        faults += [f'health.{name}: has no effect where health.spike = "off"; leave it out' for name in unused]
    elif not (health.loss_z or health.grad_norm_z):
        faults.append(
            f"health.spike: {health.spike!r} never happens where health.loss_z and health.grad_norm_z are both 0: "
            'give one, or set health.spike = "off"'
        )
    elif num_steps and health.window >= num_steps and given & {"spike", "window"}:
        faults.append(
            f"health.window: no step is judged before {health.window} were taken, and {setting} is {num_steps}: take "
            'a smaller window, or set health.spike = "off"'
        )
    acting = [name for action in ACTING for name in health.acts(action)]
    if "limit" in given and not acting:
        faults.append(
            "health.limit: has no effect where neither health.non_finite nor health.spike is one of "
            f"{', '.join(ACTING)}; leave it out"
        )
    for name in health.acts("roll_back"):
        if num_steps and save.every_steps >= num_steps:
            faults.append(
                f'health.{name}: "roll_back" has no checkpoint to go back to: save.every_steps = '
                f'{save.every_steps}, and {setting} is {num_steps}; save more often, or choose "skip"'
            )
        elif save.every_steps % whole:
            faults.append(
                f'health.{name}: "roll_back" goes back to where a rollout begins, and save.every_steps = '
                f"{save.every_steps} is no multiple of rollout.num_minibatches = {whole}"
            )
    return faults


def health_notes(health: Health, *, once: bool) -> list[str]:
    """once: nothing that is learnt from comes twice in the stage, so that leaving it out changes nothing more."""
    return [
        f'health.{name}: "drop_data" does what "skip" does here: nothing is learnt from twice'
        for name in health.acts("drop_data")
        if once
    ]
