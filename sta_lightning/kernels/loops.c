/* One pass each over pieces of float32 tensors. The same operations in the same order, each rounded once, as the
 * eager forms in arithmetic/: the same bits. */
#define STA_BLOCK 512

/* As many bytes of each of some files, told by descriptor, place in it and address to fill; 1 where one has fewer. */
int sta_read(const int64_t (*reads)[3], int count, int64_t size) {
    for (int i = 0; i < count; i++) {
        for (int64_t done = 0, got; done < size; done += got) {
            got = pread((int)reads[i][0], (char *)reads[i][2] + done, (size_t)(size - done), reads[i][1] + done);
            if (got <= 0) return 1;
        }
    }
    return 0;
}

/* out = base + scale * sum of (finetuned[t] - origin); the sum in the order of the tasks. */
int sta_linear(const float *restrict base, const float *restrict origin, const float *const *finetuned, int tasks,
               float scale, float *restrict out, int64_t size) {
    int bad = 0;
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        float total[STA_BLOCK], all[STA_BLOCK];
        const float *restrict b = base + at, *restrict zero = origin + at;
        float *restrict o = out + at;
        for (int e = 0; e < count; e++) total[e] = 0;
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            for (int e = 0; e < count; e++) total[e] += f[e] - zero[e];
        }
        for (int e = 0; e < count; e++) {
            o[e] = b[e] + scale * total[e];
            all[e] = total[e] + o[e];
        }
        for (int e = 0; e < count; e++) bad |= !STA_FINITE(all[e]);
    }
    return bad;
}

/* out = model - scale * (finetuned - origin) */
int sta_negate(const float *restrict model, const float *restrict origin, const float *restrict finetuned,
               float scale, float *restrict out, int64_t size) {
    int bad = 0;
    for (int64_t e = 0; e < size; e++) {
        const float delta = finetuned[e] - origin[e];
        const float result = model[e] - scale * delta;
        out[e] = result;
        bad |= !STA_FINITE(result + delta);
    }
    return bad;
}

/* out = model - (score > threshold ? finetuned - origin : 0) */
int sta_subtract(const float *restrict model, const float *restrict origin, const float *restrict finetuned,
                 const float *restrict score, float threshold, float *restrict out, int64_t size, int64_t *kept) {
    int bad = 0;
    int64_t many = 0;
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        const float *restrict m = model + at, *restrict b = origin + at, *restrict f = finetuned + at, *restrict s = score + at;
        float *restrict o = out + at;
        int some = 0;
        for (int e = 0; e < count; e++) {
            const int keep = s[e] > threshold;
            const float delta = f[e] - b[e];
            const float result = m[e] - (keep ? delta : 0.0f);
            o[e] = result;
            some += keep;
            bad |= !(STA_FINITE(result + delta) & STA_FINITE(s[e]));
        }
        many += some;
    }
    *kept += many;
    return bad;
}

/* Smallest and largest entry; a NaN or an infinity makes the status suspect. */
int sta_bounds(const float *restrict v, int64_t size, float *low, float *high) {
    float least = *low, most = *high;
    int bad = 0;
    for (int64_t e = 0; e < size; e++) {
        const float x = v[e];
        least = x < least ? x : least;
        most = x > most ? x : most;
        bad |= !STA_FINITE(x);
    }
    *low = least;
    *high = most;
    return bad;
}

/* The bits of a float32 as an integer of the same order. */
static inline int32_t sta_ordered(int32_t bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; }

/* How often each value of a 16-bit digit occurs: of the higher one (shift 16), or of the lower one (shift 0) among the
 * entries whose higher digit is the prefix. */
void sta_count(const int32_t *restrict bits, int64_t size, int shift, int32_t prefix, int64_t *restrict counts) {
    if (shift) {
        for (int64_t e = 0; e < size; e++) counts[(sta_ordered(bits[e]) >> 16) + 32768]++;
    } else {
        /* Few entries have the prefix: a run of them is compared as one vector, and most runs end there. */
        for (int64_t at = 0; at < size; at += 64) {
            const int count = (int)(size - at < 64 ? size - at : 64);
            const int32_t *restrict run = bits + at;
            int some = 0;
            for (int e = 0; e < count; e++) some |= sta_ordered(run[e]) >> 16 == prefix;
            for (int e = 0; some && e < count; e++) {
                const int32_t key = sta_ordered(run[e]);
                if (key >> 16 == prefix) counts[key & 0xffff]++;
            }
        }
    }
}

/* The same of float64: the highest digit (shift 48), or a lower one among the entries with the prefix above it. */
void sta_count_wide(const int64_t *restrict bits, int64_t size, int shift, int64_t prefix, int64_t *restrict counts) {
    for (int64_t e = 0; e < size; e++) {
        const int64_t key = bits[e] < 0 ? bits[e] ^ INT64_MAX : bits[e];
        if (shift == 48) counts[(key >> 48) + 32768]++;
        else if (key >> (shift + 16) == prefix) counts[key >> shift & 0xffff]++;
    }
}

/* The entries between two bounds into `out`, which has room for all, and how many; those below the lower one, equal to it,
 * equal to the upper one and not finite are added to the counts. */
int64_t sta_between(const double *restrict v, int64_t size, double low, double high, double *restrict out, int64_t *counts) {
    int64_t inside = 0, below = 0, lowest = 0, highest = 0, bad = 0;
    for (int64_t at = 0; at < size; at += 32) {
        const int count = (int)(size - at < 32 ? size - at : 32);
        const double *restrict some = v + at;
        int64_t any = 0;
        for (int e = 0; e < count; e++) {
            below += some[e] < low;
            lowest += some[e] == low;
            highest += some[e] == high;
            bad += !STA_FINITE(some[e]);
            any += (some[e] > low) & (some[e] < high);
        }
        if (any) { /* of most 32 none is */
            for (int e = 0; e < count; e++) {
                out[inside] = some[e];
                inside += (some[e] > low) & (some[e] < high);
            }
        }
    }
    counts[0] += below, counts[1] += lowest, counts[2] += highest, counts[3] += bad;
    return inside;
}

/* The magnitudes of the task vectors' entries: out[t] of entries, one task after another. */
void sta_magnitudes(const float *restrict origin, const float *const *finetuned, int tasks, float *restrict out, int64_t size) {
    for (int t = 0; t < tasks; t++) {
        const float *restrict f = finetuned[t];
        float *restrict o = out + t * size;
        for (int64_t e = 0; e < size; e++) o[e] = __builtin_fabsf(f[e] - origin[e]);
    }
}

/* An entry of a task vector where it is large enough, else 0. */
static inline float sta_trimmed(float delta, float threshold) { return __builtin_fabsf(delta) >= threshold ? delta : 0; }

/* The sums of the trimmed entries of one block, in double. */
static void sta_totals(const float *restrict origin, const float *const *finetuned, int tasks, const float *thresholds,
                       int64_t at, int count, double *restrict total) {
    const float *restrict b = origin + at;
    for (int e = 0; e < count; e++) total[e] = 0;
    for (int t = 0; t < tasks; t++) {
        const float *restrict f = finetuned[t] + at;
        for (int e = 0; e < count; e++) total[e] += sta_trimmed(f[e] - b[e], thresholds[t]);
    }
}

/* Positions at which the trimmed entries add up to more than 0, less those at which they add up to less. */
int64_t sta_elect(const float *origin, const float *const *finetuned, int tasks, const float *thresholds, int64_t size) {
    int64_t elected = 0;
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        double total[STA_BLOCK];
        int some = 0;
        sta_totals(origin, finetuned, tasks, thresholds, at, count, total);
        for (int e = 0; e < count; e++) some += (total[e] > 0) - (total[e] < 0);
        elected += some;
    }
    return elected;
}

/* out = base + scale * the sum, or the mean, of the trimmed entries that have the sign of their sum, or the majority's
 * where that is 0. */
int sta_ties(const float *restrict base, const float *restrict origin, const float *const *finetuned, int tasks,
             const float *thresholds, float majority, int mean, float scale, float *restrict out, int64_t size) {
    int bad = 0;
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        const float *restrict b = origin + at;
        double total[STA_BLOCK];
        float sign[STA_BLOCK], sum[STA_BLOCK], number[STA_BLOCK], all[STA_BLOCK];
        sta_totals(origin, finetuned, tasks, thresholds, at, count, total);
        for (int e = 0; e < count; e++) {
            sign[e] = total[e] > 0 ? 1.0f : total[e] < 0 ? -1.0f : majority;
            sum[e] = number[e] = all[e] = 0;
        }
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            for (int e = 0; e < count; e++) {
                const float delta = f[e] - b[e], kept = sta_trimmed(delta, thresholds[t]);
                const float part = kept * sign[e] > 0 ? kept : 0.0f;
                sum[e] += part;
                number[e] += part != 0 ? 1.0f : 0.0f;
                all[e] += delta;
            }
        }
        for (int e = 0; e < count; e++) {
            const float result = base[at + e] + scale * (mean ? sum[e] / (number[e] > 1 ? number[e] : 1.0f) : sum[e]);
            out[at + e] = result;
            bad |= !STA_FINITE(all[e] + result);
        }
    }
    return bad;
}

/* out = base + scale * (the sum where at least `agree` tasks are larger than their share of the others, else 0), in double. */
int sta_consensus(const float *restrict base, const float *restrict origin, const float *const *finetuned, int tasks,
                  const double *tall, int agree, double scale, float *restrict out, int64_t size) {
    int bad = 0;
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        const float *restrict b = origin + at;
        double total[STA_BLOCK];
        int32_t users[STA_BLOCK];
        for (int e = 0; e < count; e++) users[e] = 0, total[e] = 0;
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            for (int e = 0; e < count; e++) total[e] += f[e] - b[e];
        }
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            for (int e = 0; e < count; e++) {
                const double delta = f[e] - b[e];
                users[e] += __builtin_fabs(delta) > __builtin_fabs(total[e] - delta) * tall[t];
            }
        }
        for (int e = 0; e < count; e++) {
            const float result = base[at + e] + (float)(scale * (users[e] >= agree ? total[e] : 0.0));
            out[at + e] = result;
            bad |= !STA_FINITE((float)total[e] + result);
        }
    }
    return bad;
}

/* e^x = power * (1 + rest) for |x| <= 708: a power of 2, and e^r - 1 of what is left, |r| <= ln(2) / 2, by its series. */
static inline void sta_exponential(double x, double *power, double *rest) {
    const double shift = 0x1.8p52; /* the low bits of a sum with it are the integer nearest to the other one */
    union { double value; int64_t bits; } sum = { .value = x * 0x1.71547652b82fep0 + shift };
    const double k = sum.value - shift, r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 1.0 / 2.0;
    *rest = r * r * p + r;
    sum.bits = (int64_t)((uint64_t)(sum.bits + 1023) << 52);
    *power = sum.value;
}

static inline double sta_clamped(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

/* What is clamped to bounds, normalised by them: 0 to 1, or 0 where they are equal. */
static inline double sta_normalised(double value, double low, double high) {
    return low == high ? 0 : (value - low) / (high - low);
}

/* PCB's two competitions of every task, multiplied: out[t] of entries, one task after another. */
void sta_balances(const float *restrict origin, const float *const *finetuned, int tasks, const double *low,
                  const double *high, int vision, double *restrict out, int64_t size) {
    for (int64_t at = 0; at < size; at += STA_BLOCK) {
        const int count = (int)(size - at < STA_BLOCK ? size - at : STA_BLOCK);
        const float *restrict b = origin + at;
        double rivals[STA_BLOCK];
        for (int e = 0; e < count; e++) rivals[e] = 0;
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            double *restrict o = out + t * size + at;
            const double l = low[t], h = high[t];
            for (int e = 0; e < count; e++) {
                const double delta = f[e] - b[e];
                o[e] = sta_normalised(sta_clamped(__builtin_fabs(delta), l, h), l, h);
                rivals[e] += vision ? ((delta > 0) - (delta < 0)) * o[e] : delta;
            }
        }
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at;
            double *restrict o = out + t * size + at;
            for (int e = 0; e < count; e++) {
                const double x = tasks * (o[e] * o[e] - 1), y = (f[e] - b[e]) * rivals[e];
                const double twice = 2 * __builtin_fabs(y);
                double power, rest;
                sta_exponential(x < -708 ? -708 : x, &power, &rest);
                const double within = power * rest + power;
                sta_exponential(twice > 44 ? 44 : twice, &power, &rest);
                const double less = power * rest + (power - 1);
                o[e] = within * __builtin_copysign(less / (less + 2), y);
            }
        }
    }
}

/* out = base + scale * the mean of the clamped entries, weighted by what the balances are above their lower bounds. */
int sta_pcb(const float *restrict base, const float *restrict origin, const float *const *finetuned, int tasks,
            const double *low, const double *high, const double *least, const double *most, const double *noise,
            int vision, double scale, float *restrict out, int64_t size) {
    int bad = 0;
    const float *part[tasks];
    double balances[64 * STA_BLOCK]; /* fewer positions at a time of more tasks */
    const int room = tasks <= 64 ? STA_BLOCK : 64 * STA_BLOCK / tasks;
    for (int64_t at = 0; at < size; at += room) {
        const int count = (int)(size - at < room ? size - at : room);
        const float *restrict b = origin + at;
        double total[STA_BLOCK], weight[STA_BLOCK];
        float all[STA_BLOCK];
        for (int t = 0; t < tasks; t++) part[t] = finetuned[t] + at;
        sta_balances(b, part, tasks, low, high, vision, balances, count);
        for (int e = 0; e < count; e++) total[e] = weight[e] = all[e] = 0;
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = part[t];
            const double *restrict balance = balances + (int64_t)t * count;
            const double l = low[t], h = high[t], least_t = least[t], most_t = most[t], noise_t = noise[t];
            for (int e = 0; e < count; e++) {
                const float difference = f[e] - b[e];
                const double delta = difference, sign = (delta > 0) - (delta < 0);
                const double won = balance[e] - least_t > noise_t ? sta_clamped(balance[e], least_t, most_t) : least_t;
                const double score = sta_normalised(won, least_t, most_t);
                total[e] += sign * sta_clamped(__builtin_fabs(delta), l, h) * score;
                weight[e] += score;
                all[e] += difference;
            }
        }
        for (int e = 0; e < count; e++) {
            const float result = base[at + e] + (float)(scale * total[e] / (weight[e] > 1e-12 ? weight[e] : 1e-12));
            out[at + e] = result;
            bad |= !STA_FINITE(all[e] + result);
        }
    }
    return bad;
}

/* base + sum of mask[t] * (finetuned[t] - base), where mask[t] is [score[t] > the rank-th smallest of all], for any number
 * of tasks up to 4096: sta_fuse's precise form, by a selection network that it is told: rows low and high, and whether
 * minimum and maximum are needed. */
int sta_fuse_many(const float *restrict base, const float *const *finetuned, const float *const *scores, int tasks,
                  const double *low, const double *span, int rank, const int32_t (*steps)[4], int64_t many,
                  float *restrict out, int64_t size, int64_t *kept) {
    int bad = 0;
    double rows[64 * STA_BLOCK]; /* fewer positions at a time of more tasks: they stay in a core's cache */
    const int room = tasks <= 64 ? STA_BLOCK : 64 * STA_BLOCK / tasks;
    for (int64_t at = 0; at < size; at += room) {
        const int count = (int)(size - at < room ? size - at : room);
        const float *restrict b = base + at;
        double seen[STA_BLOCK];
        float total[STA_BLOCK], all[STA_BLOCK];
        for (int e = 0; e < count; e++) seen[e] = total[e] = all[e] = 0;
        for (int t = 0; t < tasks; t++) {
            const float *restrict s = scores[t] + at;
            double *restrict row = rows + t * room;
            const double l = low[t], d = span[t];
            for (int e = 0; e < count; e++) {
                row[e] = (s[e] - l) / d;
                seen[e] += row[e];
            }
        }
        for (int64_t i = 0; i < many; i++) {
            double *restrict one = rows + steps[i][0] * room, *restrict other = rows + steps[i][1] * room;
            if (steps[i][2] && steps[i][3]) {
                for (int e = 0; e < count; e++) {
                    const double x = one[e], y = other[e];
                    one[e] = x < y ? x : y;
                    other[e] = x < y ? y : x;
                }
            } else if (steps[i][2]) {
                for (int e = 0; e < count; e++) one[e] = one[e] < other[e] ? one[e] : other[e];
            } else {
                for (int e = 0; e < count; e++) other[e] = one[e] < other[e] ? other[e] : one[e];
            }
        }
        const double *restrict threshold = rows + (rank - 1) * room;
        for (int t = 0; t < tasks; t++) {
            const float *restrict f = finetuned[t] + at, *restrict s = scores[t] + at;
            const double l = low[t], d = span[t];
            int some = 0;
            for (int e = 0; e < count; e++) {
                const float delta = f[e] - b[e];
                const int keep = (s[e] - l) / d > threshold[e];
                total[e] += keep ? delta : 0.0f;
                all[e] += delta;
                some += keep;
            }
            kept[t] += some;
        }
        for (int e = 0; e < count; e++) {
            const float result = b[e] + total[e];
            out[at + e] = result;
            bad |= !(STA_FINITE(seen[e]) & STA_FINITE(all[e] + result));
        }
    }
    return bad;
}

/* The next 624 numbers of Matsumoto and Nishimura's MT19937, but for their tempering. */
static inline uint32_t sta_twisted(uint32_t first, uint32_t second) {
    return ((first & 0x80000000u) | (second & 0x7fffffffu)) >> 1 ^ (second & 1 ? 0x9908b0dfu : 0);
}

static void sta_twist(uint32_t *s) {
    for (int j = 0; j < 227; j++) s[j] = s[j + 397] ^ sta_twisted(s[j], s[j + 1]);
    for (int j = 227; j < 623; j++) s[j] = s[j - 227] ^ sta_twisted(s[j], s[j + 1]);
    s[623] = s[396] ^ sta_twisted(s[623], s[0]);
}

/* out = (finetuned - origin) / divisor where what torch.rand draws, after so many numbers, is at least the rate; else 0. */
void sta_thin(const float *restrict origin, const float *restrict finetuned, float *restrict out, int64_t size,
              uint32_t seed, int64_t skip, float rate, float divisor) {
    uint32_t state[624] = { seed };
    for (uint32_t j = 1; j < 624; j++) state[j] = 1812433253u * (state[j - 1] ^ state[j - 1] >> 30) + j;
    for (int64_t at = -skip; at < size; at += 624) {
        sta_twist(state);
        const int first = at < 0 ? (int)(-at < 624 ? -at : 624) : 0, last = (int)(size - at < 624 ? size - at : 624);
        for (int j = first; j < last; j++) {
            uint32_t y = state[j];
            y ^= y >> 11;
            y ^= y << 7 & 0x9d2c5680u;
            y ^= y << 15 & 0xefc60000u;
            y ^= y >> 18;
            const float drawn = (float)(int32_t)(y & 0xffffffu) * 0x1p-24f;
            const float delta = (finetuned[at + j] - origin[at + j]) / divisor;
            out[at + j] = (drawn >= rate) | !STA_FINITE(delta) ? delta : 0.0f; /* what is not finite is refused later */
        }
    }
}
