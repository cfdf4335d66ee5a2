"""The papers' results on toy problems, made again through the client: python -m examples.figures.

    toy.py              the policy N(theta, 0.1), with every truth by quadrature
    coin.py             a prompt that is answered right at a rate, with every truth by enumeration
    gradients.py        policy gradients, sampled, and what is measured of them
    objective.py        max@k and its derivative (PKPO's figure 1)
    weights.py          what a rank counts (PKPO's figure 2)
    variance.py         the variance of each variant's gradient (PKPO's figure 4)
    effective_rewards.py   advantages against rewards (PKPO's figure 5)
    estimates.py        the variance of the estimate of max@k (PKPO's Corollary 3)
    bias.py             where each variant's gradient is zero
    prompts.py          what each variant makes of easy and of hard prompts
    table.py, pictures.py  CSV; PNG and SVG

Each figure is a module with `tables(pkpo, effort)`, its data by the file's name, and `drawn(tables)`.
"""
