#define NLRN_SET nlrn_portable
#define NLRN_NAME "portable"
#define NLRN_KERNEL kernel_portable
#include "set.h"
