#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

eb_status eb_fail(eb_error *error, eb_status status, const char *hint, const char *format, ...) {
  if (!error) return status;
  va_list list;
  error->status = status;
  va_start(list, format);
  vsnprintf(error->message, sizeof error->message, format, list);
  va_end(list);
  snprintf(error->hint, sizeof error->hint, "%s", hint);
  return status;
}

bool eb_is_shortage(int problem) {
  static const int shortages[] = {ENOMEM, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOSPC, EDQUOT, EIO, EROFS, EINTR};
  for (size_t i = 0; i < sizeof shortages / sizeof *shortages; i++) {
    if (problem == shortages[i]) return true;
  }
  return false;
}

const char *eb_status_name(eb_status status) {
  static const char *const names[] = {"ok", "input", "refused", "check", "unsupported", "io", "memory"};
  return (unsigned)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

const char *eb_dtype_name(eb_dtype dtype) {
  static const char *const names[] = {"uint8", "int8", "int32", "int64", "float32", "bool", "int16"};
  return (unsigned)dtype < sizeof names / sizeof *names ? names[dtype] : "unknown";
}

size_t eb_dtype_size(eb_dtype dtype) {
  static const uint8_t sizes[] = {1, 1, 4, 8, 4, 1, 2};
  return (unsigned)dtype < sizeof sizes ? sizes[dtype] : 0;
}
