#define NLRN_SET nlrn_avx512bf16
#define NLRN_NAME "avx512bf16"
#define NLRN_KERNEL kernel_avx512bf16
#include "set.h"
