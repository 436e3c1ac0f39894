/* JSON text into a fixed buffer that is written to a file descriptor when full. */
#ifndef EB_JSON_H
#define EB_JSON_H

#include "status.h"

#define EB_JSON_BUFFER ((size_t)32 << 10)

struct eb_json {
  int fd;
  int failure; /* errno of the first write that failed; later output is dropped */
  size_t used;
  char buffer[EB_JSON_BUFFER];
};

__attribute__((format(printf, 2, 3))) void eb_json_print(struct eb_json *json, const char *format, ...);

/* "text" with quotes and escapes; bytes over 0x7f pass. */
void eb_json_string(struct eb_json *json, const char *text);

/* A scalar bare, otherwise a flat list in row-major order. float32 in 9 digits, which reads back as the same number;
 * what JSON cannot say (infinite, not a number) as null. */
void eb_json_tensor(struct eb_json *json, const struct eb_tensor *tensor);

/* One element of a tensor, for messages as well. */
void eb_json_element(const struct eb_tensor *tensor, const void *data, size_t index, char text[32]);

/* An error with its hint: as JSON, or for people. */
void eb_json_error(struct eb_json *json, const eb_error *error, bool as_json);

void eb_json_flush(struct eb_json *json);

#endif
