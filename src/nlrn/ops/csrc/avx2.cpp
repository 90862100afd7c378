#define NLRN_SET nlrn_avx2
#define NLRN_NAME "avx2"
#define NLRN_KERNEL kernel_avx2
#include "set.h"
