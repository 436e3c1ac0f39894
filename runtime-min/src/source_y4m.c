/* YUV4MPEG2 to RGB (SPEC 10). */
#include <string.h>

#include "source.h"

#define LINE_MAX 256

/* Chroma subsampling of the 8-bit colour spaces; without a C parameter a stream is 420jpeg. */
static const struct {
  const char *tag;
  uint8_t shift_x;
  uint8_t shift_y;
  bool mono;
} spaces[] = {
    {"420jpeg", 1, 1, false}, {"420", 1, 1, false}, {"420mpeg2", 1, 1, false}, {"420paldv", 1, 1, false},
    {"422", 1, 0, false},     {"444", 0, 0, false}, {"mono", 0, 0, true},
};

static bool parse_size(const char *text, uint64_t *size) {
  *size = 0;
  if (!*text) return false;
  for (; *text; text++) {
    if (*text < '0' || *text > '9' || *size > 99999999) return false;
    *size = *size * 10 + (uint64_t)(*text - '0');
  }
  return true;
}

static eb_status set_space(struct eb_source *source, const char *tag, eb_error *error) {
  for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
    if (strcmp(spaces[i].tag, tag) != 0) continue;
    source->y4m.chroma_shift_x = spaces[i].shift_x;
    source->y4m.chroma_shift_y = spaces[i].shift_y;
    source->y4m.mono = spaces[i].mono;
    return EB_OK;
  }
  return eb_fail(error, EB_INPUT, "write 8-bit frames, e.g. with ffmpeg -pix_fmt yuv420p",
                 "%s: the colour space C%s cannot be read", source->stream.name, tag);
}

static eb_status bad_header(const struct eb_source *source, eb_error *error) {
  return eb_fail(error, EB_INPUT, EB_HINT_Y4M, "%s: malformed y4m header", source->stream.name);
}

static eb_status set_parameter(struct eb_source *source, const char *parameter, uint64_t *width, uint64_t *height,
                               eb_error *error) {
  bool valid = true;
  switch (parameter[0]) {
    case 'W':
      valid = parse_size(parameter + 1, width);
      break;
    case 'H':
      valid = parse_size(parameter + 1, height);
      break;
    case 'C':
      return set_space(source, parameter + 1, error);
    default:
      if (strcmp(parameter, "XCOLORRANGE=FULL") == 0) source->y4m.full_range = true;
  }
  return valid ? EB_OK : bad_header(source, error);
}

static eb_status y4m_open(struct eb_source *source, eb_error *error) {
  char line[LINE_MAX];
  bool found;
  eb_status status = eb_source_wants_image(source, error);
  if (!status) status = eb_stream_line(&source->stream, line, sizeof line, &found, error);
  if (status) return status;
  if (!found || strncmp(line, "YUV4MPEG2", 9) != 0 || (line[9] && line[9] != ' ')) return bad_header(source, error);
  uint64_t width = 0, height = 0;
  status = set_space(source, spaces[0].tag, error);
  char *rest = NULL;
  for (char *word = strtok_r(line + 9, " ", &rest); word && !status; word = strtok_r(NULL, " ", &rest)) {
    status = set_parameter(source, word, &width, &height, error);
  }
  return status ? status : eb_source_check_size(source, width, height, error);
}

static uint8_t clamp(int32_t value) {
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* Factors of SPEC 10 in 1/256. */
struct matrix {
  int32_t luma, black, red_v, green_u, green_v, blue_u;
};

static const struct matrix limited = {298, 16, 409, 100, 208, 516};
static const struct matrix full = {256, 0, 359, 88, 183, 454};

static void convert_row(const uint8_t *y, const uint8_t *u, const uint8_t *v, unsigned shift, const struct matrix *m,
                        uint32_t width, uint8_t *rgb) {
  for (uint32_t x = 0; x < width; x++, rgb += 3) {
    int32_t c = m->luma * (y[x] - m->black) + 128;
    int32_t d = u ? u[x >> shift] - 128 : 0, e = v ? v[x >> shift] - 128 : 0;
    rgb[0] = clamp((c + m->red_v * e) >> 8);
    rgb[1] = clamp((c - m->green_u * d - m->green_v * e) >> 8);
    rgb[2] = clamp((c + m->blue_u * d) >> 8);
  }
}

static void convert(const struct eb_source *source, uint8_t *frame) {
  uint32_t height = source->tensor.dim[0], width = source->tensor.dim[1];
  unsigned shift_x = source->y4m.chroma_shift_x, shift_y = source->y4m.chroma_shift_y;
  size_t chroma_width = (width + shift_x) >> shift_x, chroma_height = (height + shift_y) >> shift_y;
  const uint8_t *luma = source->planes, *u = luma + (size_t)width * height, *v = u + chroma_width * chroma_height;
  const struct matrix *matrix = source->y4m.full_range ? &full : &limited;
  for (uint32_t y = 0; y < height; y++) {
    size_t chroma = (y >> shift_y) * chroma_width;
    convert_row(luma + (size_t)y * width, source->y4m.mono ? NULL : u + chroma, source->y4m.mono ? NULL : v + chroma,
                shift_x, matrix, width, frame + (size_t)y * width * 3);
  }
}

static size_t frame_bytes(const struct eb_source *source) {
  size_t height = source->tensor.dim[0], width = source->tensor.dim[1];
  unsigned shift_x = source->y4m.chroma_shift_x, shift_y = source->y4m.chroma_shift_y;
  size_t chroma = ((width + shift_x) >> shift_x) * ((height + shift_y) >> shift_y);
  return width * height + (source->y4m.mono ? 0 : 2 * chroma);
}

static eb_status y4m_next(struct eb_source *source, uint8_t *frame, bool *end, eb_error *error) {
  char line[LINE_MAX];
  bool found;
  eb_bytes head;
  eb_status status = eb_stream_peek(&source->stream, 1, &head, error);
  *end = head.size == 0;
  if (status || *end) return status;
  status = eb_stream_line(&source->stream, line, sizeof line, &found, error);
  if (status) return status;
  if (!found || strncmp(line, "FRAME", 5) != 0 || (line[5] && line[5] != ' ')) {
    return eb_fail(error, EB_INPUT, EB_HINT_Y4M, "%s: a frame does not start with FRAME", source->stream.name);
  }
  status = eb_source_read(source, source->planes, frame_bytes(source), end, error);
  if (status) return status;
  if (*end) return eb_fail(error, EB_INPUT, EB_HINT_CUT, "%s: it is cut off behind FRAME", source->stream.name);
  convert(source, frame);
  return EB_OK;
}

const struct eb_source_driver eb_source_y4m = {
    .name = "y4m", .magic = "YUV4MPEG2", .magic_size = 9, .open = y4m_open, .next = y4m_next};
