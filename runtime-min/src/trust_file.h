/* Where the keys are that this device trusts. */
#ifndef EB_TRUST_FILE_H
#define EB_TRUST_FILE_H

#include "trust.h"

#define EB_PATH_MAX 4096

/* The option, else the variable, else the user's file, else the system's; an empty path where there is none of them. */
void eb_trust_file_find(const char *option, char path[EB_PATH_MAX]);

/* Into buffer[EB_TRUST_BYTES_MAX + 1]; a file that is too large is cut off behind that, and so refused. */
eb_status eb_trust_file_read(const char *path, uint8_t *buffer, size_t *size, eb_error *error);

/* That there is none. */
eb_status eb_trust_file_missing(eb_error *error);

#endif
