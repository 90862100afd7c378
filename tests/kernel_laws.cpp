// The laws of the fused kernel without Python: every set of this processor against the definition in float64.
//
// Linked with the kernel's own sources by test_kernel_builds.py, for compilers and processors that have no torch here:
// run under an emulator, or built with -DNLRN_SSE2_LANES. Prints a line a set, then "N passed, N failed".
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <vector>

#include "problem.h"

extern "C" {
int64_t nlrn_problem_bytes();
const char *nlrn_set_name(int32_t set);
int32_t nlrn_set_lanes(int32_t set);
int64_t nlrn_workspace_bytes(int32_t set, const Problem *p, int32_t backward);
void nlrn_forward(int32_t set, const Problem *p, const ForwardArrays *a, void *workspace);
void nlrn_backward(int32_t set, const Problem *p, const BackwardArrays *a, void *workspace);
int64_t nlrn_weights_workspace_bytes(int32_t set, const WeightsProblem *p);
void nlrn_weights(int32_t set, const WeightsProblem *p, const WeightsArrays *a, void *workspace);
}

typedef std::vector<double> Doubles;

static int passed = 0, failed = 0;

static void check(bool good, const char *law, double found, double allowed) {
    good ? passed++ : failed++;
    if (!good) printf("FAILED: %s: %g, allowed %g\n", law, found, allowed);
}

static double norm(const Doubles &x) {
    double sum = 0;
    for (double v : x) sum += v * v;
    return sqrt(sum);
}
static void check_error(const Doubles &found, const Doubles &exact, double floor, double allowed, const char *law) {
    Doubles difference(exact.size());
    for (size_t i = 0; i < exact.size(); i++) difference[i] = found[i] - exact[i];
    const double error = norm(difference) / fmax(norm(exact), floor);
    check(error <= allowed, law, error, allowed);  // false for NaN
}

static uint16_t bf16_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static float of_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Numbers as the kernel takes them: float32 or bf16.
struct Numbers {
    bool bf16;
    std::vector<float> wide;
    std::vector<uint16_t> narrow;

    Numbers(bool bf16, size_t count) : bf16(bf16), wide(bf16 ? 0 : count), narrow(bf16 ? count : 0) {}
    Numbers(bool bf16, const Doubles &x) : Numbers(bf16, x.size()) {
        for (size_t i = 0; i < x.size(); i++)
            if (bf16) narrow[i] = bf16_of((float)x[i]);
            else wide[i] = (float)x[i];
    }
    void *data() { return bf16 ? (void *)narrow.data() : (void *)wide.data(); }
    Doubles doubles() const {
        Doubles found(bf16 ? narrow.size() : wide.size());
        for (size_t i = 0; i < found.size(); i++) found[i] = bf16 ? of_bf16(narrow[i]) : wide[i];
        return found;
    }
};

struct Shape {
    int batch, height, width, embed, channels, window;  // window 0: the whole image
    int64_t pixels() const { return (int64_t)batch * height * width; }
    int radius() const {
        const int whole = 2 * (height > width ? height : width) - 1;
        return (window && window < whole ? window : whole) / 2;
    }
};

struct State {
    Doubles q, k, v, weight;                 // weight: of the loss, sum of weight * out
    Doubles p, out, q_gradient, k_gradient, v_gradient;  // by the definition; p: [pixel][pixel of its image]
};

// `states` in sequence, values that bf16 holds, and their results and gradients by the definition.
struct Case {
    Shape shape;
    std::vector<State> states;

    Case(Shape shape, int count, unsigned seed) : shape(shape), states(count) {
        std::mt19937 chance(seed);
        std::normal_distribution<float> normal;
        auto draw = [&](int channels, float by) {
            Doubles x(shape.pixels() * channels);
            for (double &value : x) value = of_bf16(bf16_of(by * normal(chance)));
            return x;
        };
        const float by = 0.7f * powf(16.f / shape.embed, 0.25f);
        for (State &s : states) {
            s.q = draw(shape.embed, by), s.k = draw(shape.embed, by);
            s.v = draw(shape.channels, 1), s.weight = draw(shape.channels, 1);
        }
        forward();
        backward();
    }

    template <typename Work> void pairs(const Work &work) const {  // work(query, key, number of the pair)
        const int side = shape.height * shape.width, r = shape.radius();
        for (int b = 0; b < shape.batch; b++)
            for (int i = 0; i < side; i++)
                for (int j = 0; j < side; j++)
                    if (abs(i / shape.width - j / shape.width) <= r && abs(i % shape.width - j % shape.width) <= r)
                        work((int64_t)b * side + i, (int64_t)b * side + j, ((int64_t)b * side + i) * side + j);
    }
    static double product(const Doubles &a, int64_t i, const Doubles &b, int64_t j, int channels) {
        double sum = 0;
        for (int c = 0; c < channels; c++) sum += a[i * channels + c] * b[j * channels + c];
        return sum;
    }
    void forward() {
        Doubles logits(shape.pixels() * shape.height * shape.width);
        for (State &s : states) {
            Doubles most(shape.pixels(), -1e300), total(shape.pixels());
            pairs([&](int64_t i, int64_t j, int64_t n) {
                logits[n] += product(s.q, i, s.k, j, shape.embed);
                most[i] = fmax(most[i], logits[n]);
            });
            s.p.assign(logits.size(), 0), s.out.assign(s.v.size(), 0);
            pairs([&](int64_t i, int64_t, int64_t n) { total[i] += s.p[n] = exp(logits[n] - most[i]); });
            pairs([&](int64_t i, int64_t j, int64_t n) {
                s.p[n] /= total[i];
                for (int c = 0; c < shape.channels; c++)
                    s.out[i * shape.channels + c] += s.p[n] * s.v[j * shape.channels + c];
            });
        }
    }
    void backward() {
        Doubles later(shape.pixels() * shape.height * shape.width);  // the gradient of the carried logits
        for (size_t t = states.size(); t-- > 0;) {
            State &s = states[t];
            s.q_gradient.assign(s.q.size(), 0), s.k_gradient.assign(s.k.size(), 0), s.v_gradient.assign(s.v.size(), 0);
            pairs([&](int64_t i, int64_t j, int64_t n) {
                const double d = product(s.out, i, s.weight, i, shape.channels);
                later[n] += s.p[n] * (product(s.weight, i, s.v, j, shape.channels) - d);
                for (int c = 0; c < shape.embed; c++) {
                    s.q_gradient[i * shape.embed + c] += later[n] * s.k[j * shape.embed + c];
                    s.k_gradient[j * shape.embed + c] += later[n] * s.q[i * shape.embed + c];
                }
                for (int c = 0; c < shape.channels; c++)
                    s.v_gradient[j * shape.channels + c] += s.p[n] * s.weight[i * shape.channels + c];
            });
        }
    }
};

// The same by the kernel.
struct Runs {
    int set, threads;
    bool bf16, carry;
    int state_type;

    Problem problem(const Shape &s) const {
        return {s.batch, s.height, s.width, s.embed, s.channels, s.radius(), threads, bf16 ? BFLOAT16 : FLOAT32,
                state_type, FLOAT32, s.embed, s.embed, s.channels};
    }
    int64_t state_elements(const Shape &s) const {
        const int lanes = nlrn_set_lanes(set), side = 2 * s.radius() + 1;
        return (int64_t)s.batch * s.height * ((s.width + lanes - 1) / lanes) * side * side * lanes + 2 * lanes;
    }
    template <typename Run> void run(const Problem &p, bool backward, const Run &run) const {
        std::vector<char> room(nlrn_workspace_bytes(set, &p, backward) + 64);
        run((void *)(((uintptr_t)room.data() + 63) / 64 * 64));
    }

    struct Found {
        std::vector<Numbers> outs, q_gradients, k_gradients, v_gradients;
    };
    Found work(const Case &c, bool gradients) const {
        const Shape &s = c.shape;
        const Problem p = problem(s);
        const size_t count = c.states.size();
        std::vector<std::vector<float>> states(count, std::vector<float>(carry ? state_elements(s) : 0));
        std::vector<std::vector<float>> norms(count, std::vector<float>(2 * s.pixels())), exact = norms;
        Found found;
        for (size_t t = 0; t < count; t++) {
            Numbers q(bf16, c.states[t].q), k(bf16, c.states[t].k), v(bf16, c.states[t].v), out(bf16, c.states[t].v.size());
            exact[t].resize(c.states[t].v.size());
            const ForwardArrays a = {q.data(), k.data(), v.data(), carry && t ? states[t - 1].data() : nullptr,
                                     carry ? states[t].data() : nullptr, norms[t].data(), out.data(), exact[t].data()};
            run(p, false, [&](void *room) { nlrn_forward(set, &p, &a, room); });
            found.outs.push_back(out);
        }
        std::vector<float> later(carry ? state_elements(s) : 0);
        for (size_t t = count; gradients && t-- > 0;) {
            const State &st = c.states[t];
            Numbers q(bf16, st.q), k(bf16, st.k), v(bf16, st.v), weight(bf16, st.weight);
            Numbers dq(bf16, st.q.size()), dk(bf16, st.k.size()), dv(bf16, st.v.size());
            std::vector<float> before(later.size());
            const BackwardArrays a = {q.data(), k.data(), v.data(), exact[t].data(), weight.data(), norms[t].data(),
                                      carry ? states[t].data() : nullptr, carry && t + 1 < count ? later.data() : nullptr,
                                      carry ? before.data() : nullptr, dq.data(), dk.data(), dv.data()};
            run(p, true, [&](void *room) { nlrn_backward(set, &p, &a, room); });
            later = before;
            found.q_gradients.insert(found.q_gradients.begin(), dq);
            found.k_gradients.insert(found.k_gradients.begin(), dk);
            found.v_gradients.insert(found.v_gradients.begin(), dv);
        }
        return found;
    }
};

static bool same_bytes(const std::vector<Numbers> &a, const std::vector<Numbers> &b) {
    for (size_t i = 0; i < a.size(); i++)
        if (memcmp(a[i].wide.data(), b[i].wide.data(), 4 * a[i].wide.size()) ||
            memcmp(a[i].narrow.data(), b[i].narrow.data(), 2 * a[i].narrow.size()))
            return false;
    return true;
}

static void laws_of(int set, const Shape &shape) {
    const Case one(shape, 1, 1), three(shape, 3, 2);
    for (bool bf16 : {false, true})
        for (bool carry : {false, true}) {
            const Case &c = carry ? three : one;
            const double allowed = bf16 ? 4e-3 : 1e-5, narrow = bf16 ? 8e-3 : 1e-5;  // as test_cpu.py
            const Runs kernel{set, 3, bf16, carry, carry ? FLOAT32 : NONE};
            const Runs::Found found = kernel.work(c, true);
            for (size_t t = 0; t < c.states.size(); t++) {
                const State &s = c.states[t];
                const double floor = 1e-2 * norm(s.weight) * norm(s.v) / sqrt((double)shape.pixels());
                check_error(found.outs[t].doubles(), s.out, 0, allowed, "out");
                check_error(found.q_gradients[t].doubles(), s.q_gradient, floor, narrow, "gradient of q");
                check_error(found.k_gradients[t].doubles(), s.k_gradient, floor, narrow, "gradient of k");
                check_error(found.v_gradients[t].doubles(), s.v_gradient, floor, narrow, "gradient of v");
            }
            const Runs alone{set, 1, bf16, carry, carry ? FLOAT32 : NONE};
            const Runs::Found again = alone.work(c, true);
            const bool same = same_bytes(found.outs, again.outs) && same_bytes(found.q_gradients, again.q_gradients) &&
                              same_bytes(found.k_gradients, again.k_gradients) &&
                              same_bytes(found.v_gradients, again.v_gradients);
            check(same, "the bytes do not depend on the number of threads", same, 1);
        }
    // a correlation in float16, carried: logits below 64 are rounded to 2^-5 at most
    const Runs half{set, 2, true, true, FLOAT16};
    const Runs::Found found = half.work(three, false);
    for (size_t t = 0; t < 3; t++) check_error(found.outs[t].doubles(), three.states[t].out, 0, 8e-3, "float16 states");
    // a number lost is not hidden, and spoils no other pixel
    Case lost(shape, 1, 3);
    const int64_t where = shape.pixels() / 2;
    lost.states[0].q[where * shape.embed] = NAN;
    const Doubles out = Runs{set, 2, false, false, NONE}.work(lost, false).outs[0].doubles();
    int64_t nans = 0;
    for (int64_t i = 0; i < shape.pixels(); i++) nans += isnan(out[i * shape.channels]) != 0;
    check(nans == 1 && isnan(out[where * shape.channels]), "one query of NaN, one pixel of NaN", (double)nans, 1);
}

// The gradient of a 3 x 3 convolution's kernel and bias against the definition; and its bytes by any threads.
static void laws_of_weights(int set, int batch, int height, int width, int in, int out) {
    std::mt19937 chance(batch + in);
    std::normal_distribution<float> normal;
    const int64_t pixels = (int64_t)batch * height * width;
    std::vector<float> x(pixels * in), d(pixels * out);
    for (float &value : x) value = normal(chance);
    for (float &value : d) value = normal(chance);
    Doubles weight((size_t)out * 9 * in), bias(out);
    for (int64_t n = 0; n < pixels; n++)
        for (int o = 0; o < out; o++) {
            bias[o] += d[n * out + o];
            for (int tap = 0; tap < 9; tap++) {
                const int64_t y = n / width % height + tap / 3 - 1, column = n % width + tap % 3 - 1;
                if (y < 0 || y >= height || column < 0 || column >= width) continue;
                const int64_t there = n + (tap / 3 - 1) * width + tap % 3 - 1;
                for (int i = 0; i < in; i++) weight[(o * 9 + tap) * in + i] += (double)d[n * out + o] * x[there * in + i];
            }
        }
    std::vector<float> found[2], found_bias[2];
    for (int run = 0; run < 2; run++) {
        const WeightsProblem p = {batch, height, width, in, out, run ? 3 : 1};
        found[run].resize(weight.size()), found_bias[run].resize(out);
        std::vector<char> room(nlrn_weights_workspace_bytes(set, &p) + 64);
        const WeightsArrays a = {x.data(), d.data(), found[run].data(), found_bias[run].data()};
        nlrn_weights(set, &p, &a, (void *)(((uintptr_t)room.data() + 63) / 64 * 64));
    }
    check_error(Doubles(found[0].begin(), found[0].end()), weight, 0, 1e-5, "gradient of a kernel");
    check_error(Doubles(found_bias[0].begin(), found_bias[0].end()), bias, 0, 1e-5, "gradient of a bias");
    const bool same = found[0] == found[1] && found_bias[0] == found_bias[1];
    check(same, "a kernel's gradient does not depend on the number of threads", same, 1);
}

int main() {
    const Shape shapes[] = {  // as test_cpu.py: one pixel, single rows and columns, primes, channels with a remainder
        {1, 1, 1, 4, 8, 3},    {1, 1, 37, 3, 5, 5},     {2, 41, 1, 16, 16, 7}, {2, 5, 3, 16, 18, 45},
        {1, 13, 37, 32, 64, 15}, {3, 23, 19, 20, 24, 7}, {1, 20, 50, 17, 33, 1}, {2, 9, 21, 8, 16, 0},
    };
    check(nlrn_problem_bytes() == sizeof(Problem), "the library and its caller agree on a problem", 0, 0);
    const char *name;
    for (int set = 0; (name = nlrn_set_name(set)); set++) {
        if (!*name) continue;  // not on this processor
        for (const Shape &shape : shapes) laws_of(set, shape);
        laws_of_weights(set, 1, 1, 1, 3, 5), laws_of_weights(set, 2, 23, 40, 37, 20), laws_of_weights(set, 2, 9, 1, 8, 13);
        printf("%s, %d lanes: %d checks so far, %d of them failed\n", name, nlrn_set_lanes(set), passed + failed, failed);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed || passed < 100;
}
