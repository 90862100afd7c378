#define NLRN_SET nlrn_avx512
#define NLRN_NAME "avx512"
#define NLRN_KERNEL kernel_avx512
#include "set.h"
