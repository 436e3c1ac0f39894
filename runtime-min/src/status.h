/* Errors: a status, a bounded message and a hint. */
#ifndef EB_STATUS_H
#define EB_STATUS_H

#include "edgebuild_run.h"

/* Fills `error` (may be NULL) and returns `status`. */
__attribute__((format(printf, 4, 5))) eb_status eb_fail(eb_error *error, eb_status status, const char *hint,
                                                        const char *format, ...);

#endif
