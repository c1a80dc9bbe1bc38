"""Ask of both models, and of the attacks on them, whether the figures of the other stages may be believed.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/audit.json (1 or 0 for each check, and how many passed and failed)

A failed check does not stop the run: it says which figure not to believe, and why.
"""

from stages.common import artifacts, checks, errors, evaluation, images, params


def main() -> None:
    knobs = params.load()
    device = images.device(knobs.device)
    test = images.read("test")
    audited = test.take(images.first_per_class(test.labels, knobs.audit.images))

    metrics: dict[str, dict[str, int]] = {}
    width = max(map(len, checks.CHECKS))
    for name, model in evaluation.load_both(test, device).items():
        subject = checks.Subject(
            model=model,
            image_set=audited,
            target=len(audited.classes) - 1,
            eps=knobs.eps,
            epsilons=tuple(knobs.fgsm_sweep.epsilons),
            pgd_steps=knobs.audit.pgd_steps,
            seed=knobs.seed,
            device=device,
        )
        print(f"{name} model, {len(audited)} test images", flush=True)
        results = {}
        for check_name, check in checks.CHECKS.items():
            finding = check(subject)
            results[check_name] = int(finding.passed)
            verdict = "pass" if finding.passed else "FAIL"
            reason = "" if finding.passed else f": {finding.otherwise}"
            print(f"  {verdict}  {check_name:<{width}}  {finding.seen}{reason}", flush=True)
        passed = sum(results.values())
        metrics[name] = results | {"passed": passed, "failed": len(results) - passed}

    artifacts.write_metrics(artifacts.METRICS / "audit.json", metrics)
    failed = {name: counts["failed"] for name, counts in metrics.items()}
    print(f"audit: {failed['standard']} of {len(checks.CHECKS)} checks failed on the standard model, "
          f"{failed['robust']} on the robust one")  # fmt: skip


if __name__ == "__main__":
    errors.run(main)
