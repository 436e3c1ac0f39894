#include "manifest.h"

#include <stdio.h>
#include <string.h>

#include "date.h"

#define FIELDS_MAX 20
#define NUMBER_MAX 0x7fffffffu
#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define UPPER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS "0123456789"

static const char remake[] = "the bundle was not made by edgebuild, or by another version of it; compile it again";

/* The current line, split into fields; `count` is 0 behind the last line. */
struct lines {
  char *at;
  char *end;
  unsigned number;
  char *field[FIELDS_MAX];
  int count;
  eb_error *error;
};

static eb_status bad_line(struct lines *lines, const char *what) {
  return eb_fail(lines->error, EB_REFUSED, remake, "manifest, line %u: %s", lines->number, what);
}

/* Canonical text: printable ASCII, no empty line, single spaces inside lines only. */
static bool is_canonical(const char *text, size_t size) {
  if (size == 0 || text[size - 1] != '\n') return false;
  char before = '\n';
  for (size_t i = 0; i < size; i++) {
    char c = text[i];
    if (c != '\n' && (c < 0x20 || c > 0x7e)) return false;
    bool separator = c == ' ' || c == '\n';
    if (separator && (before == ' ' || before == '\n')) return false;
    before = c;
  }
  return true;
}

static eb_status next_line(struct lines *lines) {
  lines->count = 0;
  lines->number++;
  if (lines->at == lines->end) return EB_OK;
  char *line_end = memchr(lines->at, '\n', (size_t)(lines->end - lines->at));
  *line_end = 0;
  for (char *field = lines->at; field; lines->count++) {
    if (lines->count == FIELDS_MAX) return bad_line(lines, "too many fields");
    lines->field[lines->count] = field;
    field = strchr(field, ' ');
    if (field) *field++ = 0;
  }
  lines->at = line_end + 1;
  return EB_OK;
}

static bool line_is(const struct lines *lines, const char *key) {
  return lines->count > 0 && strcmp(lines->field[0], key) == 0;
}

/* Requires the current line to be `key` with `values` values. */
static eb_status expect(struct lines *lines, const char *key, int values) {
  if (line_is(lines, key) && lines->count == values + 1) return EB_OK;
  return eb_fail(lines->error, EB_REFUSED, remake, "manifest, line %u: expected `%s` with %d value%s", lines->number,
                 key, values, values == 1 ? "" : "s");
}

/* Decimal, no leading zeros, at most `max`. */
static bool parse_number(const char *text, uint64_t max, uint64_t *number) {
  if (!*text || (text[0] == '0' && text[1])) return false;
  uint64_t value = 0;
  for (; *text; text++) {
    if (*text < '0' || *text > '9' || value > (UINT64_MAX - 9) / 10) return false;
    value = value * 10 + (uint64_t)(*text - '0');
  }
  *number = value;
  return value <= max;
}

static bool parse_positive(const char *text, uint32_t *number) {
  uint64_t value;
  if (!parse_number(text, NUMBER_MAX, &value) || value == 0) return false;
  *number = (uint32_t)value;
  return true;
}

static bool is_word(const char *text, const char *first, const char *rest, size_t max) {
  size_t length = strlen(text);
  return length >= 1 && length <= max && strchr(first, text[0]) && strspn(text + 1, rest) == length - 1;
}

static bool is_name(const char *text) {
  return is_word(text, LOWER DIGITS, LOWER DIGITS "_-", 64);
}

static bool is_identifier(const char *text) {
  return is_word(text, LOWER UPPER "_", LOWER UPPER DIGITS "_", 64);
}

static bool is_path(const char *text) {
  return is_word(text, LOWER DIGITS, LOWER DIGITS "._/-", 99) && !strstr(text, "..") && !strstr(text, "//") &&
         text[strlen(text) - 1] != '/';
}

static bool is_version(const char *text) {
  return is_word(text, LOWER UPPER DIGITS, LOWER UPPER DIGITS ".+~-", 32);
}

/* A line of one key and one word. */
static eb_status read_word(struct lines *lines, const char *key, bool (*valid)(const char *), const char **word) {
  eb_status status = expect(lines, key, 1);
  if (status) return status;
  if (!valid(lines->field[1])) return bad_line(lines, "malformed name");
  *word = lines->field[1];
  return next_line(lines);
}

static eb_status read_count(struct lines *lines, const char *key, uint32_t *number) {
  eb_status status = expect(lines, key, 1);
  if (status) return status;
  if (!parse_positive(lines->field[1], number)) return bad_line(lines, "expected a number from 1 to 2147483647");
  return next_line(lines);
}

static eb_status read_date(struct lines *lines, const char *key, uint32_t *date) {
  if (!line_is(lines, key)) return EB_OK;
  eb_status status = expect(lines, key, 1);
  if (status) return status;
  eb_bytes text = {lines->field[1], strlen(lines->field[1])};
  if (!eb_date_parse(text, date)) return bad_line(lines, "expected a day, YYYY-MM-DD, of the years 2000 to 9999");
  return next_line(lines);
}

static eb_status read_version_line(struct lines *lines) {
  if (lines->count != 2 || !line_is(lines, "edgebuild-manifest")) return bad_line(lines, "this is not a manifest");
  uint64_t version;
  if (!parse_number(lines->field[1], NUMBER_MAX, &version)) return bad_line(lines, "malformed version");
  if (version == 1) return next_line(lines);
  return eb_fail(lines->error, EB_UNSUPPORTED, "install a newer edgebuild-run",
                 "the bundle's manifest has version %u; this runtime reads version 1", (unsigned)version);
}

static eb_status read_arch(struct lines *lines, struct eb_manifest *manifest) {
  eb_status status = expect(lines, "arch", 1);
  if (status) return status;
  for (int arch = 0; arch < EB_ARCH_COUNT; arch++) {
    if (strcmp(lines->field[1], eb_arch_name(arch)) != 0) continue;
    manifest->arch = (enum eb_arch)arch;
    return next_line(lines);
  }
  return bad_line(lines, "unknown arch");
}

/* An unknown feature is no malformed manifest: it may be one that a later version of the format names. */
static eb_status read_needs(struct lines *lines, struct eb_manifest *manifest) {
  if (!line_is(lines, "needs")) return EB_OK;
  if (lines->count == 1) return bad_line(lines, "expected a CPU feature");
  int last = -1;
  for (int i = 1; i < lines->count; i++) {
    int bit = eb_feature_bit(manifest->arch, lines->field[i]);
    if (bit < 0) {
      manifest->unknown_need = lines->field[i];
      continue;
    }
    if (bit <= last) return bad_line(lines, "CPU features are not in order");
    manifest->needs |= (uint64_t)1 << bit;
    last = bit;
  }
  return next_line(lines);
}

static eb_status read_quality(struct lines *lines, struct eb_manifest *manifest) {
  eb_status status = expect(lines, "quality", 1);
  if (status) return status;
  manifest->speed_only = strcmp(lines->field[1], "speed-only") == 0;
  if (!manifest->speed_only && strcmp(lines->field[1], "trained") != 0) return bad_line(lines, "unknown quality");
  return next_line(lines);
}

static eb_status read_checked(struct lines *lines, struct eb_manifest *manifest) {
  manifest->checked = !line_is(lines, "checked");
  if (manifest->checked) return EB_OK;
  if (lines->count != 2 || strcmp(lines->field[1], "no") != 0) return bad_line(lines, "expected `checked no`");
  return next_line(lines);
}

static eb_status read_trigger(struct lines *lines, struct eb_manifest *manifest) {
  static const char *const kinds[] = {"none", "camera", "timer"};
  if (line_is(lines, "trigger") && lines->count >= 2) {
    for (int kind = 0; kind < 3; kind++) {
      if (strcmp(lines->field[1], kinds[kind]) != 0 || lines->count != (kind == EB_TRIGGER_NONE ? 2 : 3)) continue;
      manifest->trigger = (eb_trigger)kind;
      bool valid = kind == EB_TRIGGER_NONE || parse_positive(lines->field[2], &manifest->trigger_value);
      return valid ? next_line(lines) : bad_line(lines, "expected a number from 1 to 2147483647");
    }
  }
  return bad_line(lines, "expected `trigger camera FPS`, `trigger timer PERIOD_MS` or `trigger none`");
}

static bool parse_dtype(const char *text, eb_dtype *dtype) {
  for (int code = 0; code <= EB_BOOL; code++) {
    if (strcmp(text, eb_dtype_name((eb_dtype)code)) != 0) continue;
    *dtype = (eb_dtype)code;
    return true;
  }
  return false;
}

/* All lines of `key` (input or output), into ports[EB_PORTS_MAX]. */
static eb_status read_ports(struct lines *lines, const char *key, struct eb_port *ports, uint32_t *count) {
  eb_status status = EB_OK;
  for (; !status && line_is(lines, key); status = next_line(lines)) {
    if (*count == EB_PORTS_MAX) return bad_line(lines, "too many inputs or outputs");
    struct eb_port *port = &ports[(*count)++];
    if (lines->count < 3 || lines->count > 3 + (int)EB_RANK_MAX) return bad_line(lines, "expected NAME DTYPE DIM ...");
    port->name = lines->field[1];
    if (!is_identifier(port->name)) return bad_line(lines, "malformed name");
    for (const struct eb_port *other = ports; other != port; other++) {
      if (strcmp(other->name, port->name) == 0) return bad_line(lines, "this name occurs twice");
    }
    if (!parse_dtype(lines->field[2], &port->dtype)) return bad_line(lines, "unknown dtype");
    port->rank = (uint32_t)lines->count - 3;
    port->bytes = eb_dtype_size(port->dtype);
    for (uint32_t i = 0; i < port->rank; i++) {
      if (!parse_positive(lines->field[3 + i], &port->dim[i])) return bad_line(lines, "malformed dimension");
      if (__builtin_mul_overflow(port->bytes, (uint64_t)port->dim[i], &port->bytes))
        return bad_line(lines, "too large");
    }
    if (port->bytes > EB_TENSOR_BYTES_MAX) return bad_line(lines, "too large");
  }
  return status;
}

static bool parse_sha256(const char *text, uint8_t digest[EB_SHA256_BYTES]) {
  static const char hex[] = DIGITS "abcdef";
  if (strlen(text) != (size_t)2 * EB_SHA256_BYTES) return false;
  for (size_t i = 0; i < EB_SHA256_BYTES; i++) {
    const char *high = strchr(hex, text[2 * i]), *low = strchr(hex, text[2 * i + 1]);
    if (!high || !low) return false;
    digest[i] = (uint8_t)((high - hex) << 4 | (low - hex));
  }
  return true;
}

static eb_status read_files(struct lines *lines, struct eb_manifest *manifest) {
  eb_status status = EB_OK;
  for (; !status && line_is(lines, "file"); status = next_line(lines)) {
    if (manifest->file_count == EB_FILES_MAX) return bad_line(lines, "more than 256 files");
    if (lines->count != 4) return bad_line(lines, "expected SIZE SHA256 PATH");
    struct eb_file file = {.path = lines->field[3]};
    if (!parse_number(lines->field[1], EB_FILE_BYTES_MAX, &file.size)) return bad_line(lines, "malformed size");
    if (!parse_sha256(lines->field[2], file.sha256)) return bad_line(lines, "malformed SHA-256");
    if (!is_path(file.path)) return bad_line(lines, "malformed path");
    bool taken = strcmp(file.path, "manifest") == 0 || strcmp(file.path, "manifest.minisig") == 0;
    if (taken || eb_manifest_file(manifest, file.path)) return bad_line(lines, "this path occurs twice");
    manifest->file[manifest->file_count++] = file;
  }
  return status;
}

static eb_status require_file(const struct eb_manifest *manifest, const char *path, eb_error *error) {
  if (eb_manifest_file(manifest, path)) return EB_OK;
  return eb_fail(error, EB_REFUSED, remake, "the manifest lists no file %s", path);
}

static eb_status require_golden(const struct eb_manifest *manifest, const char *side, uint32_t count, eb_error *error) {
  for (uint32_t i = 0; i < count; i++) {
    char path[32];
    snprintf(path, sizeof path, "golden/%s-%u.npy", side, i);
    eb_status status = require_file(manifest, path, error);
    if (status) return status;
  }
  return EB_OK;
}

static eb_status require_files(const struct eb_manifest *manifest, eb_error *error) {
  static const char *const required[] = {"edgebuild-run", "program.so", "plan.bin", "weights.bin"};
  for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
    eb_status status = require_file(manifest, required[i], error);
    if (status) return status;
  }
  eb_status status = require_golden(manifest, "in", manifest->input_count, error);
  return status ? status : require_golden(manifest, "out", manifest->output_count, error);
}

static eb_status read_all(struct lines *lines, struct eb_manifest *manifest) {
  eb_status status = next_line(lines);
  if (!status) status = read_version_line(lines);
  if (!status) status = read_word(lines, "name", is_name, &manifest->name);
  if (!status) status = read_word(lines, "version", is_version, &manifest->version);
  if (!status) status = read_word(lines, "target", is_name, &manifest->target);
  if (!status) status = read_count(lines, "release", &manifest->release);
  if (!status) status = read_date(lines, "made", &manifest->made);
  if (!status) status = read_date(lines, "expires", &manifest->expires);
  if (!status) status = read_arch(lines, manifest);
  if (!status) status = read_needs(lines, manifest);
  if (!status) status = read_count(lines, "abi", &manifest->abi);
  if (!status) status = read_quality(lines, manifest);
  if (!status) status = read_checked(lines, manifest);
  if (!status) status = read_word(lines, "function", is_identifier, &manifest->function);
  if (!status) status = read_trigger(lines, manifest);
  if (!status && line_is(lines, "timeout-ms")) status = read_count(lines, "timeout-ms", &manifest->timeout_ms);
  if (!status) status = read_ports(lines, "input", manifest->input, &manifest->input_count);
  if (!status) status = read_ports(lines, "output", manifest->output, &manifest->output_count);
  if (!status) status = read_files(lines, manifest);
  if (!status && lines->count) status = bad_line(lines, "unexpected line");
  return status;
}

eb_status eb_manifest_parse(char *text, size_t size, struct eb_manifest *manifest, eb_error *error) {
  memset(manifest, 0, sizeof *manifest);
  if (size > EB_MANIFEST_BYTES_MAX || !is_canonical(text, size)) {
    return eb_fail(error, EB_REFUSED, remake, "the manifest is not text in canonical form");
  }
  struct lines lines = {.at = text, .end = text + size, .error = error};
  eb_status status = read_all(&lines, manifest);
  return status ? status : require_files(manifest, error);
}

const struct eb_file *eb_manifest_file(const struct eb_manifest *manifest, const char *path) {
  for (uint32_t i = 0; i < manifest->file_count; i++) {
    if (strcmp(manifest->file[i].path, path) == 0) return &manifest->file[i];
  }
  return NULL;
}

eb_status eb_manifest_fits(const struct eb_manifest *manifest, const struct eb_cpu *cpu, eb_error *error) {
  static const char other_target[] =
      "compile the recipe for this kind of device: edgebuild compile --target NAME; edgebuild targets lists them";
  if (manifest->arch != cpu->arch) {
    return eb_fail(error, EB_UNSUPPORTED, other_target, "the bundle is for %s, this machine is %s",
                   eb_arch_name(manifest->arch), eb_arch_name(cpu->arch));
  }
  if (manifest->abi != EB_ABI) {
    return eb_fail(error, EB_UNSUPPORTED, "install the edgebuild-run that belongs to the bundle",
                   "the bundle needs kernel ABI %u, this runtime has ABI %u", manifest->abi, EB_ABI);
  }
  if (manifest->unknown_need) {
    return eb_fail(error, EB_UNSUPPORTED, "install a newer edgebuild-run, or compile for another target",
                   "the bundle needs the CPU feature %s, which this runtime does not know", manifest->unknown_need);
  }
  uint64_t missing = manifest->needs & ~cpu->features;
  if (!missing) return EB_OK;
  return eb_fail(error, EB_UNSUPPORTED, other_target, "the bundle needs the CPU feature %s, which this machine lacks",
                 eb_feature_name(manifest->arch, (unsigned)__builtin_ctzll(missing)));
}
