/* NumPy's .npy, versions 1 and 2 (numpy.lib.format): one frame of the input's shape, or many along one more axis in
 * front. */
#include <stdio.h>
#include <string.h>

#include "source.h"

#define PREAMBLE_BYTES 8u /* magic and version */
#define HEADER_MAX 4096u
#define AXES_MAX (EB_RANK_MAX + 1)

static const char *const descr_of[] = {"|u1", "|i1", "<i4", "<i8", "<f4", "|b1", "<i2"};

struct header {
  char descr[16];
  bool fortran_order;
  uint32_t rank;
  uint64_t dim[AXES_MAX];
};

static eb_status malformed(const struct eb_source *source, eb_error *error) {
  return eb_fail(error, EB_INPUT, "write it with numpy.save", "%s: malformed .npy header", source->stream.name);
}

static const char *skip_spaces(const char *at) {
  return at + strspn(at, " \n");
}

/* Moves behind `token` and the spaces after it. */
static bool take(const char **at, const char *token) {
  size_t length = strlen(token);
  if (strncmp(*at, token, length) != 0) return false;
  *at = skip_spaces(*at + length);
  return true;
}

static bool take_number(const char **at, uint64_t *number) {
  size_t digits = strspn(*at, "0123456789");
  if (digits == 0 || digits > 18) return false;
  *number = 0;
  for (size_t i = 0; i < digits; i++) *number = *number * 10 + (uint64_t)((*at)[i] - '0');
  *at = skip_spaces(*at + digits);
  return true;
}

/* A Python tuple: (), (3,), (3, 4), (3, 4,). */
static bool take_shape(const char **at, struct header *header) {
  if (!take(at, "(")) return false;
  header->rank = 0;
  while (!take(at, ")")) {
    if (header->rank == AXES_MAX || !take_number(at, &header->dim[header->rank])) return false;
    header->rank++;
    if (!take(at, ",") && (header->rank < 2 || **at != ')')) return false;
  }
  return true;
}

static bool take_descr(const char **at, struct header *header) {
  if (**at != '\'') return false;
  const char *end = strchr(*at + 1, '\'');
  size_t length = end ? (size_t)(end - *at - 1) : sizeof header->descr;
  if (length >= sizeof header->descr) return false;
  memcpy(header->descr, *at + 1, length);
  header->descr[length] = 0;
  *at = skip_spaces(end + 1);
  return true;
}

static bool take_bool(const char **at, bool *value) {
  *value = take(at, "True");
  return *value || take(at, "False");
}

/* {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } with the keys in any order, each once. */
static bool parse_header(const char *at, struct header *header) {
  bool descr = false, order = false, shape = false;
  if (!take(&at, "{")) return false;
  while (!take(&at, "}")) {
    bool valid = false;
    if (!descr && take(&at, "'descr'")) {
      valid = descr = take(&at, ":") && take_descr(&at, header);
    } else if (!order && take(&at, "'fortran_order'")) {
      valid = order = take(&at, ":") && take_bool(&at, &header->fortran_order);
    } else if (!shape && take(&at, "'shape'")) {
      valid = shape = take(&at, ":") && take_shape(&at, header);
    }
    if (!valid || (!take(&at, ",") && *at != '}')) return false;
  }
  return descr && order && shape && *at == 0;
}

/* "float32 [2, 3]" into text. */
static void describe(const char *dtype, const uint64_t *dim, uint32_t rank, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "%s [", dtype);
  for (uint32_t i = 0; i < rank && used < size; i++) {
    used += (size_t)snprintf(text + used, size - used, "%s%llu", i ? ", " : "", (unsigned long long)dim[i]);
  }
  if (used < size) snprintf(text + used, size - used, "]");
}

/* NumPy writes '|' for single bytes; '<' means the same there. */
static const char *dtype_name_of(const char *descr) {
  for (unsigned i = 0; i < sizeof descr_of / sizeof *descr_of; i++) {
    bool single_byte = descr_of[i][0] == '|' && descr[0] == '<';
    if (strcmp(descr, descr_of[i]) == 0 || (single_byte && strcmp(descr + 1, descr_of[i] + 1) == 0)) {
      return eb_dtype_name((eb_dtype)i);
    }
  }
  return descr;
}

static eb_status check_header(struct eb_source *source, const struct header *header, eb_error *error) {
  const struct eb_tensor *tensor = &source->tensor;
  const char *dtype = dtype_name_of(header->descr);
  uint64_t wanted[EB_RANK_MAX];
  for (uint32_t i = 0; i < tensor->rank; i++) wanted[i] = tensor->dim[i];
  bool many = header->rank == tensor->rank + 1;
  bool fits = many || header->rank == tensor->rank;
  /* An input with a batch of one takes an array with a batch of many as so many frames. */
  bool batch = !many && tensor->rank > 1 && wanted[0] == 1;
  for (uint32_t i = batch; fits && i < tensor->rank; i++) fits = header->dim[i + many] == wanted[i];
  if (!fits || strcmp(dtype, eb_dtype_name(tensor->dtype)) != 0) {
    char expected[128], found[128];
    describe(eb_dtype_name(tensor->dtype), wanted, tensor->rank, expected, sizeof expected);
    describe(dtype, header->dim, header->rank, found, sizeof found);
    const char *hint = fits ? "convert it with numpy.astype" : "one more axis in front may hold several frames";
    return eb_fail(error, EB_INPUT, hint, "%s: input %s: expected %s, found %s", source->stream.name, tensor->name,
                   expected, found);
  }
  if (header->fortran_order) {
    return eb_fail(error, EB_INPUT, "save numpy.ascontiguousarray(array)", "%s: it is in Fortran order",
                   source->stream.name);
  }
  source->frames_left = many || batch ? header->dim[0] : 1;
  return EB_OK;
}

/* Length of the header text: 2 bytes in version 1, 4 in version 2. */
static eb_status read_length(struct eb_source *source, size_t *length, eb_error *error) {
  uint8_t preamble[PREAMBLE_BYTES] = {0}, field[4] = {0};
  size_t got;
  eb_status status = eb_stream_read(&source->stream, preamble, sizeof preamble, &got, error);
  if (status) return status;
  bool valid = got == sizeof preamble && memcmp(preamble, "\x93NUMPY", 6) == 0;
  if (!valid || preamble[6] < 1 || preamble[6] > 2 || preamble[7] != 0) return malformed(source, error);
  size_t width = preamble[6] == 1 ? 2 : 4;
  status = eb_stream_read(&source->stream, field, width, &got, error);
  if (status) return status;
  *length = field[0] | (size_t)field[1] << 8 | (size_t)field[2] << 16 | (size_t)field[3] << 24;
  return got == width && *length < HEADER_MAX ? EB_OK : malformed(source, error);
}

static eb_status npy_open(struct eb_source *source, eb_error *error) {
  char text[HEADER_MAX] = {0};
  struct header header = {0};
  size_t length = 0, got = 0;
  eb_status status = read_length(source, &length, error);
  if (!status) status = eb_stream_read(&source->stream, text, length, &got, error);
  if (status) return status;
  if (got != length || strlen(text) != length || !parse_header(text, &header)) return malformed(source, error);
  return check_header(source, &header, error);
}

static eb_status npy_next(struct eb_source *source, uint8_t *frame, bool *end, eb_error *error) {
  *end = source->frames_left == 0;
  if (*end) return EB_OK;
  eb_status status = eb_source_read(source, frame, source->tensor.bytes, end, error);
  if (status) return status;
  if (*end) {
    return eb_fail(error, EB_INPUT, EB_HINT_CUT, "%s: it is cut off: %llu frames are missing", source->stream.name,
                   (unsigned long long)source->frames_left);
  }
  source->frames_left--;
  return EB_OK;
}

const struct eb_source_driver eb_source_npy = {
    .name = "npy", .magic = "\x93NUMPY", .magic_size = 6, .open = npy_open, .next = npy_next};
