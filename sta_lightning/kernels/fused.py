"""The C text of fusion through masks in one pass, for one number of tasks and one rank."""

from __future__ import annotations

from sta_lightning.kernels.network import selection_network

# Scores of the quick form lie in [0, 2^60], so that no positive score vanishes: see the head of the
# C text.
SPAN_LIMIT = 2.0**60

_HEAD = """\
/* base + sum of mask[t] * (finetuned[t] - base), where mask[t] is [score[t] > the {k}-th smallest of the {n} scores].
 *
 * The precise form compares (value - low) / span in double, as the eager one does. The quick form compares
 * (value - low) * (2^60 / span) in float, which is within 3.1 * 2^-24 of that, relatively (spans from 2^-60 to 2^60 make the
 * factor at least 1 and at most 2^120: no positive difference becomes 0, none overflows). The two keep the same
 * tasks wherever the next score above the threshold is farther from it than the tolerance, 1e-6 of it; a block of positions
 * of which one is not so is done by the precise form. Scores equal to 0 are exactly so. Values taken as they are
 * (factor 1, low 0) round nothing: tolerance and floor are 0. */
#define BLOCK 256
#define TASKS {n}
"""

_DRIVER = """
int sta_fuse(const float *base, const float *const *finetuned, const float *const *scores, const double *low,
             const double *span, const float *factor, float tolerance, float floor,
             int exact, float *out, int64_t size, int64_t *kept) {
    int bad = 0;
    for (int64_t at = 0; at < size; at += BLOCK) {
        const int count = (int)(size - at < BLOCK ? size - at : BLOCK);
        const float *t[TASKS], *s[TASKS];
        int32_t some[TASKS];
        for (int i = 0; i < TASKS; i++) { t[i] = finetuned[i] + at; s[i] = scores[i] + at; }
        int state = exact ? 2 : quick(base + at, t, s, low, factor, tolerance, floor, out + at, count, some);
        if (state & 2) state = precise(base + at, t, s, low, span, out + at, count, some) | (state & 1);
        bad |= state & 1;
        for (int i = 0; i < TASKS; i++) kept[i] += some[i];
    }
    return bad;
}
"""


def fused_source(n: int, k: int) -> str:
    """The text of ``sta_fuse`` for n tasks (2 at least) and rank k of the threshold, 1..n."""
    head = _HEAD.replace("{n}", str(n)).replace("{k}", str(k))
    return head + _form(n, k, quick=True) + _form(n, k, quick=False) + _DRIVER


def _form(n: int, k: int, *, quick: bool) -> str:
    kind = "float" if quick else "double"
    tasks = range(n)
    lines = [
        f"static int {'quick' if quick else 'precise'}(const float *restrict base, const float *const *finetuned,",
        "    const float *const *scores, const double *low, "
        + ("const float *factor, float tolerance, float floor," if quick else "const double *span,"),
        "    float *restrict out, int count, int32_t *some) {",
    ]
    for t in tasks:
        lines.append(
            f"    const float *restrict t{t} = finetuned[{t}], *restrict i{t} = scores[{t}]; "
            f"const {kind} l{t} = ({kind})low[{t}], d{t} = {'factor' if quick else 'span'}[{t}]; int32_t c{t} = 0;"
        )
    lines += ["    int bad = 0, near = 0;", "    for (int e = 0; e < count; e++) {"]
    for t in tasks:
        value = f"(i{t}[e] - l{t}) * d{t}" if quick else f"((double)i{t}[e] - l{t}) / d{t}"
        lines.append(f"        const {kind} s{t} = {value};")
    names = [f"s{t}" for t in tasks]
    # Beside the threshold the quick form looks at the next score above it.
    ranks = [k, k + 1] if quick and k < n else [k]
    for step, (low, high, keep_minimum, keep_maximum) in enumerate(selection_network(n, *ranks)):
        a, b = names[low], names[high]
        if keep_minimum:
            lines.append(f"        const {kind} m{step} = {a} < {b} ? {a} : {b};")
            names[low] = f"m{step}"
        if keep_maximum:
            lines.append(f"        const {kind} x{step} = {a} < {b} ? {b} : {a};")
            names[high] = f"x{step}"
    threshold = names[k - 1]
    lines += ["        const float b = base[e];", "        float total = 0, all = 0;"]
    for t in tasks:
        lines.append(
            f"        {{ const float d = t{t}[e] - b; const int keep = s{t} > {threshold}; "
            f"total += keep ? d : 0.0f; all += d; c{t} += keep; }}"
        )
    lines += [
        f"        const {kind} seen = {' + '.join(f's{t}' for t in tasks)};",
        "        out[e] = b + total;",
        "        bad |= !(STA_FINITE(seen) & STA_FINITE(all + out[e]));",
    ]
    if quick and k < n:
        lines.append(
            f"        near |= ({names[k]} > 0) & ({names[k]} - {threshold} < {threshold} * tolerance + floor);"
        )
    lines += ["    }", *(f"    some[{t}] = c{t};" for t in tasks)]
    lines += ["    return bad | near << 1;" if quick else "    return bad;", "}", ""]
    return "\n".join(lines)
