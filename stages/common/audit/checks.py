"""What the audit asks of a model and of the attacks on it: one small function a check, each naming what it saw.

Sources: Carlini 2019 (On Evaluating Adversarial Robustness), Athalye 2018 (Obfuscated Gradients), Croce 2020
(AutoAttack and its warnings). To add a check, write a function `Subject -> Finding` and name it in CHECKS.
"""

from stages.common.audit import accuracy_checks, attack_checks, model_checks
from stages.common.audit.finding import Check

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        model_checks.beats_the_commonest_class,
        attack_checks.eps_zero_is_clean,
        attack_checks.budget_and_range_kept,
        attack_checks.model_untouched,
        model_checks.forward_repeats,
        attack_checks.planted_examples_found,
        model_checks.gradients_not_zero,
        model_checks.softmax_not_saturated,
        attack_checks.fgsm_raises_loss,
        attack_checks.targeted_lowers_loss,
        attack_checks.target_is_hit,
        accuracy_checks.fgsm_below_clean,
        accuracy_checks.fgsm_falls_with_eps,
        accuracy_checks.fgsm_close_to_worst_case,
        model_checks.gradients_agree_nearby,
        accuracy_checks.noise_weaker_than_fgsm,
        accuracy_checks.pgd_at_most_fgsm,
        accuracy_checks.fgsm_close_to_pgd,
        accuracy_checks.pgd_falls_with_eps,
        accuracy_checks.pgd_converged,
        accuracy_checks.pgd_restarts_agree,
        accuracy_checks.pgd_close_to_margins,
        accuracy_checks.pgd_unbounded_reaches_zero,
        accuracy_checks.undefended_is_broken,
        accuracy_checks.transfer_weaker_than_pgd,
        accuracy_checks.square_weaker_than_pgd,
        accuracy_checks.certificate_not_contradicted,
    )
}
