/* Where frames come from: streams of images or tensors, turned into one input of the model (SPEC 10). */
#ifndef EB_SOURCE_H
#define EB_SOURCE_H

#include "stream.h"

enum eb_format { EB_FORMAT_DETECT, EB_FORMAT_Y4M, EB_FORMAT_RGB, EB_FORMAT_PPM, EB_FORMAT_NPY };

struct eb_source;

/* What a format has to offer; one row of the table in source.c. */
struct eb_source_driver {
  const char *name;
  const char *magic; /* NULL: known by its name only */
  size_t magic_size;
  eb_status (*open)(struct eb_source *source, eb_error *error);
  /* One frame into `frame` (tensor.bytes bytes); *end is true when there is none left. */
  eb_status (*next)(struct eb_source *source, uint8_t *frame, bool *end, eb_error *error);
};

struct eb_source {
  struct eb_stream stream;
  struct eb_tensor tensor; /* the input that frames are made for; `data` is not used */
  const struct eb_source_driver *driver;
  uint8_t *planes;      /* y4m: a frame as it is in the stream; the caller's */
  uint64_t frames_left; /* npy */
  struct {
    uint8_t chroma_shift_x;
    uint8_t chroma_shift_y;
    bool mono;
    bool full_range;
  } y4m;
};

/* Bytes that a y4m frame of this input's size needs next to the RGB one. */
size_t eb_source_memory(const struct eb_tensor *tensor);

/* Reads the head of the stream. `planes` is eb_source_memory bytes, or NULL for a format other than y4m. */
eb_status eb_source_open(struct eb_source *source, struct eb_stream stream, enum eb_format format,
                         const struct eb_tensor *tensor, uint8_t *planes, eb_error *error);

eb_status eb_source_next(struct eb_source *source, void *frame, bool *end, eb_error *error);

/* "y4m" and so on; EB_FORMAT_DETECT when unknown. */
enum eb_format eb_format_of(const char *name);

/* Whether images can feed this input: uint8 [H, W, 3]. */
eb_status eb_source_wants_image(const struct eb_source *source, eb_error *error);

/* An error unless the stream's frames are as large as the input's. */
eb_status eb_source_check_size(const struct eb_source *source, uint64_t width, uint64_t height, eb_error *error);

/* Reads `size` bytes; nothing at all is the end of the stream, less than all of them an error. */
eb_status eb_source_read(struct eb_source *source, uint8_t *data, size_t size, bool *end, eb_error *error);

extern const struct eb_source_driver eb_source_y4m, eb_source_rgb, eb_source_ppm, eb_source_npy;

#endif
