#include "program.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAGIC 0x31504245u
#define MEMFD_CLOEXEC 1u
#define MEMFD_ALLOW_SEALING 2u
#define MEMFD_EXEC 16u /* Linux 6.3; older kernels refuse the flag and need none */

static const char remake[] = "the compiler and this runtime disagree; compile the recipe again";

static eb_status system_failed(eb_error *error, const char *what) {
  return eb_fail(error, EB_UNSUPPORTED, "edgebuild-run needs Linux 3.17 or newer, with /proc",
                 "cannot load program.so: %s: %s", what, strerror(errno));
}

static int memfd_new(void) {
  unsigned flags = MEMFD_CLOEXEC | MEMFD_ALLOW_SEALING;
  int fd = (int)syscall(SYS_memfd_create, "program.so", flags | MEMFD_EXEC);
  return fd >= 0 || errno != EINVAL ? fd : (int)syscall(SYS_memfd_create, "program.so", flags);
}

static bool write_all(int fd, const uint8_t *data, size_t size) {
  while (size) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

static bool hash_of_file(int fd, size_t size, const struct eb_cpu *cpu, uint8_t digest[EB_SHA256_BYTES]) {
  void *content = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (content == MAP_FAILED) return false;
  eb_sha256(cpu->sha256, content, size, digest);
  munmap(content, size);
  return true;
}

/* Fills and seals `fd`, then compares the hash of what it holds. */
static eb_status fill_and_seal(int fd, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES], const struct eb_cpu *cpu,
                               eb_error *error) {
  if (!write_all(fd, image.data, image.size)) return system_failed(error, "write");
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) {
    return system_failed(error, "seal");
  }
  uint8_t digest[EB_SHA256_BYTES];
  if (!hash_of_file(fd, image.size, cpu, digest)) return system_failed(error, "map");
  if (memcmp(digest, sha256, sizeof digest) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "somebody writes to the bundle while it is loaded; use a copy of your own",
                 "program.so changed while it was loaded");
}

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

eb_status eb_program_open(struct eb_program *program, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                          uint64_t needs, const struct eb_cpu *cpu, eb_error *error) {
  *program = (struct eb_program){0};
  if (image.size == 0) return eb_fail(error, EB_REFUSED, remake, "program.so is empty");
  int fd = memfd_new();
  if (fd < 0) return system_failed(error, "memfd_create");
  eb_status status = fill_and_seal(fd, image, sha256, cpu, error);
  if (!status) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    program->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!program->handle) status = eb_fail(error, EB_REFUSED, remake, "cannot load program.so: %s", dlerror());
  }
  if (status) {
    close(fd);
    return status;
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
