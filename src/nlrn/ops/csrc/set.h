// One instruction set's kernel: the entry points, each of which picks its template.
#include "problem.h"
#include "lanes.h"
#include "layout.h"
#include "micro.h"
#include "tile.h"
#include "forward.h"
#include "backward.h"
#include "weights.h"

namespace NLRN_SET {

static int64_t workspace_bytes(const Problem &p, bool back) {
    const Plan g = plan_of(p);
    Arena memory{nullptr};
    if (back) BackwardPlanes(g, Buffer(g, 2), p.state != NONE, memory);
    else ForwardPlanes(g, Buffer(g, 1), memory);
    return memory.used;
}

template <int PAIR> static void forward_of(const Problem &p, const ForwardArrays &a, void *workspace) {
    const Plan g = plan_of(p);
    if (p.state == NONE) return forward<PAIR, NONE>(g, p, a, workspace);
    if (p.state == FLOAT16) return forward<PAIR, FLOAT16>(g, p, a, workspace);
    return forward<PAIR, FLOAT32>(g, p, a, workspace);
}

template <int PAIR, int STATE> static void backward_of(const Problem &p, const BackwardArrays &a, void *workspace) {
    const Plan g = plan_of(p);
    if (STATE != NONE && p.state_gradient == BFLOAT16) return backward<PAIR, STATE, BFLOAT16>(g, p, a, workspace);
    return backward<PAIR, STATE, FLOAT32>(g, p, a, workspace);
}
template <int PAIR> static void backward_of(const Problem &p, const BackwardArrays &a, void *workspace) {
    if (p.state == NONE) return backward_of<PAIR, NONE>(p, a, workspace);
    if (p.state == FLOAT16) return backward_of<PAIR, FLOAT16>(p, a, workspace);
    return backward_of<PAIR, FLOAT32>(p, a, workspace);
}

static void run_forward(const Problem &p, const ForwardArrays &a, void *workspace) {
    if (HAS_BF16 && p.element == BFLOAT16) return forward_of<HAS_BF16 ? 2 : 1>(p, a, workspace);
    forward_of<1>(p, a, workspace);
}
static void run_backward(const Problem &p, const BackwardArrays &a, void *workspace) {
    if (HAS_BF16 && p.element == BFLOAT16) return backward_of<HAS_BF16 ? 2 : 1>(p, a, workspace);
    backward_of<1>(p, a, workspace);
}

}  // namespace NLRN_SET

// NLRN_KERNEL: the name under which dispatch.cpp knows this set
extern const Kernel NLRN_KERNEL;
const Kernel NLRN_KERNEL = {NLRN_NAME, NLRN_SET::LANES, NLRN_SET::workspace_bytes,
                            NLRN_SET::run_forward, NLRN_SET::run_backward,
                            NLRN_SET::weights_workspace_bytes, NLRN_SET::weights};
