/* Errors: a status, a bounded message and a hint. */
#ifndef EB_STATUS_H
#define EB_STATUS_H

#include "edgebuild_run.h"

/* Hints that several places give. */
#define EB_HINT_PATH "name an existing file that this user may read"
#define EB_HINT_CUT "let the program that writes it finish, or copy the file again"
#define EB_HINT_Y4M "write it with ffmpeg: -pix_fmt yuv420p -f yuv4mpegpipe"

/* Fills `error` (may be NULL) and returns `status`. */
__attribute__((format(printf, 4, 5))) eb_status eb_fail(eb_error *error, eb_status status, const char *hint,
                                                        const char *format, ...);

/* Whether an errno tells of something that the machine has run out of, or that failed for a moment: it says nothing
 * about the file that was being loaded. */
bool eb_is_shortage(int problem);

#endif
