#include "json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PRINT_MAX 512

void eb_json_error(struct eb_json *json, const eb_error *error, bool as_json) {
  if (!as_json) {
    eb_json_print(json, "error: %s\n", error->message);
    if (error->hint[0]) eb_json_print(json, "hint: %s\n", error->hint);
    return;
  }
  eb_json_print(json, "{\"error\":");
  eb_json_string(json, error->message);
  eb_json_print(json, ",\"hint\":");
  eb_json_string(json, error->hint);
  eb_json_print(json, ",\"code\":\"%s\"}\n", eb_status_name(error->status));
}

void eb_json_flush(struct eb_json *json) {
  size_t at = 0;
  while (at < json->used && !json->failure) {
    ssize_t written = write(json->fd, json->buffer + at, json->used - at);
    if (written >= 0) {
      at += (size_t)written;
    } else if (errno != EINTR) {
      json->failure = errno;
    }
  }
  json->used = 0;
}

void eb_json_print(struct eb_json *json, const char *format, ...) {
  if (EB_JSON_BUFFER - json->used < PRINT_MAX) eb_json_flush(json);
  va_list list;
  va_start(list, format);
  int length = vsnprintf(json->buffer + json->used, PRINT_MAX, format, list);
  va_end(list);
  if (length > 0) json->used += length < PRINT_MAX ? (size_t)length : PRINT_MAX - 1;
}

void eb_json_string(struct eb_json *json, const char *text) {
  eb_json_print(json, "\"");
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\') {
      eb_json_print(json, "\\%c", c);
    } else if (c < 0x20 || c == 0x7f) {
      eb_json_print(json, "\\u%04x", c);
    } else {
      eb_json_print(json, "%c", c);
    }
  }
  eb_json_print(json, "\"");
}

static void float_text(const uint8_t *at, char text[32]) {
  float value;
  memcpy(&value, at, sizeof value);
  if (value == 0 && signbit(value)) {
    snprintf(text, 32, "-0.0"); /* many readers take -0 for an integer, which has no sign */
    return;
  }
  snprintf(text, 32, isfinite(value) ? "%.9g" : "null", (double)value);
}

static void int_text(const uint8_t *at, size_t size, char text[32]) {
  int64_t wide;
  int32_t word;
  memcpy(size == 8 ? (void *)&wide : (void *)&word, at, size);
  snprintf(text, 32, "%" PRId64, size == 8 ? wide : word);
}

void eb_json_element(const struct eb_tensor *tensor, const void *data, size_t index, char text[32]) {
  size_t size = eb_dtype_size(tensor->dtype);
  const uint8_t *at = (const uint8_t *)data + index * size;
  switch (tensor->dtype) {
    case EB_U8:
      snprintf(text, 32, "%u", *at);
      break;
    case EB_I8:
      snprintf(text, 32, "%d", (int8_t)*at);
      break;
    case EB_BOOL:
      snprintf(text, 32, "%s", *at ? "true" : "false");
      break;
    case EB_F32:
      float_text(at, text);
      break;
    case EB_I32:
    case EB_I64:
      int_text(at, size, text);
      break;
    case EB_I16: /* no manifest can name it (SPEC 2) */
      text[0] = 0;
      break;
  }
}

void eb_json_tensor(struct eb_json *json, const struct eb_tensor *tensor) {
  size_t count = tensor->bytes / eb_dtype_size(tensor->dtype);
  if (tensor->rank) eb_json_print(json, "[");
  for (size_t i = 0; i < count; i++) {
    char text[32];
    eb_json_element(tensor, tensor->data, i, text);
    eb_json_print(json, i ? ",%s" : "%s", text);
  }
  if (tensor->rank) eb_json_print(json, "]");
}
