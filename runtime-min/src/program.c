#include "program.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sealed.h"

#define MAGIC 0x31504245u

static const char remake[] = "the compiler and this runtime disagree; compile the recipe again";

static bool has_dependencies(void *handle) {
  struct link_map *map = NULL;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map)) return true;
  for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
    if (entry->d_tag == DT_NEEDED) return true;
  }
  return false;
}

static eb_status check_table(const struct eb_program *program, uint64_t needs, eb_error *error) {
  const struct eb_program_table *table = program->table;
  if (!table) return eb_fail(error, EB_REFUSED, remake, "program.so exports no eb_program");
  if (table->magic != MAGIC || table->reserved != 0) return eb_fail(error, EB_REFUSED, remake, "program.so: bad magic");
  if (table->abi != EB_ABI) {
    return eb_fail(error, EB_UNSUPPORTED, "install the edgebuild-run that belongs to the bundle",
                   "program.so has kernel ABI %u, this runtime has ABI %u", table->abi, EB_ABI);
  }
  if (table->needs != needs) {
    return eb_fail(error, EB_REFUSED, remake, "program.so needs other CPU features than the manifest says");
  }
  if (has_dependencies(program->handle)) {
    return eb_fail(error, EB_REFUSED, remake, "program.so depends on other libraries");
  }
  return EB_OK;
}

/* The loader tells no number of what it failed at, only words. */
static bool tells_of_shortage(const char *text) {
  static const char *const words[] = {"failed to map segment", "cannot map zero-fill pages", "memory protection"};
  static const int problems[] = {ENOMEM, EMFILE, ENFILE, EIO, EINTR};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    if (strstr(text, words[i])) return true;
  }
  for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
    if (strstr(text, strerror(problems[i]))) return true;
  }
  return false;
}

static eb_status not_loaded(const char *text, eb_error *error) {
  bool shortage = tells_of_shortage(text);
  return eb_fail(error, shortage ? EB_MEMORY : EB_REFUSED, shortage ? "free memory, or end other processes" : remake,
                 "cannot load program.so: %s", text);
}

eb_status eb_program_open(struct eb_program *program, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                          uint64_t needs, const struct eb_cpu *cpu, eb_error *error) {
  *program = (struct eb_program){0};
  int fd;
  eb_status status = eb_sealed_open("program.so", image, sha256, cpu, &fd, error);
  if (status) return status;
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  program->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!program->handle) {
    close(fd);
    return not_loaded(dlerror(), error);
  }
  program->fd = fd;
  program->table = dlsym(program->handle, "eb_program");
  status = check_table(program, needs, error);
  if (status) eb_program_close(program);
  return status;
}

void eb_program_close(struct eb_program *program) {
  if (program->handle) {
    dlclose(program->handle);
    close(program->fd);
  }
  *program = (struct eb_program){0};
}
