#include "source.h"

#include <stdio.h>
#include <string.h>

static const struct eb_source_driver *const drivers[] = {
    [EB_FORMAT_Y4M] = &eb_source_y4m,
    [EB_FORMAT_RGB] = &eb_source_rgb,
    [EB_FORMAT_PPM] = &eb_source_ppm,
    [EB_FORMAT_NPY] = &eb_source_npy,
};
#define FORMAT_COUNT ((int)(sizeof drivers / sizeof *drivers))

enum eb_format eb_format_of(const char *name) {
  for (int format = EB_FORMAT_Y4M; format < FORMAT_COUNT; format++) {
    if (strcmp(drivers[format]->name, name) == 0) return (enum eb_format)format;
  }
  return EB_FORMAT_DETECT;
}

/* At most three full planes. */
size_t eb_source_memory(const struct eb_tensor *tensor) {
  return tensor->bytes;
}

/* By the first bytes, else by the ending of the name. */
static eb_status detect(struct eb_source *source, eb_error *error) {
  eb_bytes head;
  eb_status status = eb_stream_peek(&source->stream, 16, &head, error);
  if (status) return status;
  const char *name = source->stream.name, *dot = strrchr(name, '.');
  if (head.size == 0) return eb_fail(error, EB_INPUT, EB_HINT_CUT, "%s: it is empty", name);
  for (int format = EB_FORMAT_Y4M; format < FORMAT_COUNT; format++) {
    const struct eb_source_driver *driver = drivers[format];
    bool by_magic =
        driver->magic && head.size >= driver->magic_size && memcmp(head.data, driver->magic, driver->magic_size) == 0;
    bool by_name = !driver->magic && dot && strcmp(dot + 1, driver->name) == 0;
    if (!by_magic && !by_name) continue;
    source->driver = driver;
    return EB_OK;
  }
  return eb_fail(error, EB_INPUT, "for raw RGB frames add --format rgb",
                 "%s: unknown format; y4m, ppm, npy and raw RGB can be read", name);
}

eb_status eb_source_open(struct eb_source *source, struct eb_stream stream, enum eb_format format,
                         const struct eb_tensor *tensor, uint8_t *planes, eb_error *error) {
  *source = (struct eb_source){.stream = stream, .tensor = *tensor, .planes = planes};
  eb_status status = EB_OK;
  if (format == EB_FORMAT_DETECT) {
    status = detect(source, error);
  } else {
    source->driver = drivers[format];
  }
  return status ? status : source->driver->open(source, error);
}

eb_status eb_source_next(struct eb_source *source, void *frame, bool *end, eb_error *error) {
  *end = false;
  return source->driver->next(source, frame, end, error);
}

eb_status eb_source_wants_image(const struct eb_source *source, eb_error *error) {
  const struct eb_tensor *tensor = &source->tensor;
  if (tensor->dtype == EB_U8 && tensor->rank == 3 && tensor->dim[2] == 3) return EB_OK;
  return eb_fail(error, EB_INPUT, "give the input as .npy", "%s: the model's input %s is no uint8 image [H, W, 3]",
                 source->stream.name, tensor->name);
}

eb_status eb_source_check_size(const struct eb_source *source, uint64_t width, uint64_t height, eb_error *error) {
  const struct eb_tensor *tensor = &source->tensor;
  if (width == tensor->dim[1] && height == tensor->dim[0]) return EB_OK;
  char hint[96];
  snprintf(hint, sizeof hint, "scale the frames, e.g. with ffmpeg -vf scale=%u:%u", tensor->dim[1], tensor->dim[0]);
  return eb_fail(error, EB_INPUT, hint, "%s: the frames are %llux%llu, the model takes %ux%u", source->stream.name,
                 (unsigned long long)width, (unsigned long long)height, tensor->dim[1], tensor->dim[0]);
}

eb_status eb_source_read(struct eb_source *source, uint8_t *data, size_t size, bool *end, eb_error *error) {
  size_t got;
  eb_status status = eb_stream_read(&source->stream, data, size, &got, error);
  if (status || got == size) return status;
  *end = got == 0;
  if (*end) return EB_OK;
  return eb_fail(error, EB_INPUT, EB_HINT_CUT, "%s: it is cut off: the last frame has %zu of %zu bytes",
                 source->stream.name, got, size);
}
