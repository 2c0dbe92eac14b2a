"""FP8 recipes: the first step's gradients against bf16's, and ten losses beside bf16's ten."""

from policies import documents, make, nll
from report import Report, relative

RECIPES = ("blockwise", "tensorwise")
STEPS = 10


def main() -> None:
    report = Report(__doc__ or "")
    if not report.cuda:
        import te_python

        te_python.build_and_reach(report, *RECIPES)
    drawn, curves, first = documents(), {}, {}
    for recipe in ("none", *RECIPES):
        policy = make(report.device, dtype="bf16", precision={"fp8": recipe})
        curves[recipe] = []
        for step in range(STEPS):
            curves[recipe].append(policy.forward_backward(drawn, nll)["loss"])
            if step == 0:
                first[recipe] = {n: g.float().cpu() for n, g in policy.gradients().items()}
            policy.optim_step(1e-3)
        gaps = {n: relative(g, first["none"][n]) for n, g in first[recipe].items()}
        worst = max(gaps, key=lambda n: gaps[n])
        apart = [abs(a - b) / b for a, b in zip(curves[recipe], curves["none"], strict=True)]
        report.note(**{recipe: {"losses": curves[recipe], "worst": [worst, gaps[worst]], "apart": max(apart)}})
        assert curves[recipe][-1] < curves[recipe][0], recipe
        # The first steps start from equal weights; what follows drifts apart as roundings add up.
        assert apart[0] < 1e-2, (recipe, apart)
        assert max(apart) < 5e-2, (recipe, apart)
        # E4M3 has two digits; a router's tie may change one token's expert.
        assert sorted(gaps.values())[len(gaps) // 2] < 0.2, (recipe, gaps)
        assert recipe == "none" or curves[recipe] != curves["none"]  # FP8 was at work


if __name__ == "__main__":
    main()
