/* Time that only goes forward, for intervals. */
#ifndef EB_CLOCK_H
#define EB_CLOCK_H

#include <stdint.h>

uint64_t eb_clock_ns(void);
uint64_t eb_clock_ms(void);

#endif
