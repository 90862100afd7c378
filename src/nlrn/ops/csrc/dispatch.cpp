// The C functions that Python calls, and the choice of an instruction set on this processor.
//
// NLRN_X86_SETS: the sets for newer x86-64 processors are linked in (setup.py builds them with GCC and Clang on Linux).
#include "compiler.h"
#include "problem.h"

extern const Kernel kernel_portable;
#if defined(NLRN_X86_SETS)
extern const Kernel kernel_avx512bf16, kernel_avx512, kernel_avx2;
#endif

namespace {

const Kernel *const KERNELS[] = {  // the best first
#if defined(NLRN_X86_SETS)
    &kernel_avx512bf16, &kernel_avx512, &kernel_avx2,
#endif
    &kernel_portable,
};
constexpr int COUNT = sizeof KERNELS / sizeof *KERNELS;

bool runs_here([[maybe_unused]] const Kernel *kernel) {
#if defined(NLRN_X86_SETS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (kernel == &kernel_avx512bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
    if (kernel == &kernel_avx512) return avx512;
    if (kernel == &kernel_avx2) return avx2;
#endif
    return true;
}

}  // namespace

extern "C" {

// Bytes of a Problem, by which the caller sees that it was built for this library.
NLRN_EXPORT int64_t nlrn_problem_bytes() { return sizeof(Problem); }

// Name and lanes of the set of that number; null past the last, an empty name for one that cannot run here.
NLRN_EXPORT const char *nlrn_set_name(int32_t set) {
    if (set < 0 || set >= COUNT) return nullptr;
    return runs_here(KERNELS[set]) ? KERNELS[set]->name : "";
}
NLRN_EXPORT int32_t nlrn_set_lanes(int32_t set) { return KERNELS[set]->lanes; }
NLRN_EXPORT int64_t nlrn_workspace_bytes(int32_t set, const Problem *p, int32_t backward) {
    return KERNELS[set]->workspace_bytes(*p, backward != 0);
}
NLRN_EXPORT void nlrn_forward(int32_t set, const Problem *p, const ForwardArrays *a, void *workspace) {
    KERNELS[set]->forward(*p, *a, workspace);
}
NLRN_EXPORT void nlrn_backward(int32_t set, const Problem *p, const BackwardArrays *a, void *workspace) {
    KERNELS[set]->backward(*p, *a, workspace);
}

NLRN_EXPORT int64_t nlrn_weights_workspace_bytes(int32_t set, const WeightsProblem *p) {
    return KERNELS[set]->weights_workspace_bytes(*p);
}
NLRN_EXPORT void nlrn_weights(int32_t set, const WeightsProblem *p, const WeightsArrays *a, void *workspace) {
    KERNELS[set]->weights(*p, *a, workspace);
}

}  // extern "C"
