"""The worst mixture of losses that you already have, whatever computed them."""

import numpy as np

import klball

losses = np.random.default_rng(0).gamma(4, 0.5, 2_000)  # put your own here, in nats

for epsilon in (0.05, 0.5):
    worst = klball.solve_dual(loss=losses, epsilon=epsilon)
    print(f"ε = {epsilon}: mean loss {losses.mean():.2f}, worst case {-worst.worst_case:.2f} nats")
    print(f"  λ = {worst.lambda_:.3f}: one nat of radius more would cost that much")
    print(f"  ESS = {worst.ess:.0f} of {len(losses)}: a few samples would decide if it were below 100")
    top = np.argsort(worst.weights)[::-1][:3]
    shares = ", ".join(f"#{i} counts {worst.weights[i] * len(losses):.1f} times" for i in top)
    print(f"  top-weighted: {shares}")
