#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sealed.h"

extern char **environ;

static eb_status read_image(struct eb_store *store, const struct eb_head *head, const struct eb_file *file,
                            struct eb_arena *image, eb_error *error) {
  eb_files files = eb_store_files(store, head->id);
  uint8_t digest[EB_SHA256_BYTES];
  eb_feed feed;
  eb_status status = files.open(files.context, file->path, file->size, file->sha256, &feed, error);
  if (status) return status;
  status = eb_arena_open_whole(image, file->size, error);
  if (!status) status = eb_feed_hashed(&feed, file->size, store->accelerated, image->base, digest, error);
  files.close(files.context, &feed);
  if (status || memcmp(digest, file->sha256, sizeof digest) == 0) return status;
  return eb_archive_other_file(file->path, error);
}

eb_status eb_launch_open(struct eb_store *store, const struct eb_head *head, const struct eb_cpu *cpu, int *fd,
                         eb_error *error) {
  const struct eb_file *file = eb_manifest_file(&head->manifest, "edgebuild-run");
  struct eb_arena image = {0};
  *fd = -1;
  eb_status status = read_image(store, head, file, &image, error);
  if (!status) {
    status = eb_sealed_open("edgebuild-run", (eb_bytes){image.base, file->size}, file->sha256, cpu, fd, error);
  }
  eb_arena_close(&image);
  return status;
}

static _Noreturn void give_up(const char *what) {
  char text[160];
  eb_status status = eb_is_shortage(errno) ? EB_MEMORY : EB_UNSUPPORTED;
  int length = snprintf(text, sizeof text, "error: cannot %s: %s\n", what, strerror(errno));
  if (length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0) _exit((int)status);
  _exit((int)status);
}

_Noreturn void eb_launch_become(int runtime, char *const *argv, const int streams[3], pid_t parent, int death_signal) {
  for (int number = 0; number < 3; number++) {
    if (streams[number] >= 0 && dup2(streams[number], number) < 0) give_up("set up its streams");
  }
  prctl(PR_SET_PDEATHSIG, death_signal);
  /* It may have died before it was asked to tell. */
  if (getppid() != parent) _exit(EB_IO);
  /* A script's interpreter opens it by its descriptor. */
  fcntl(runtime, F_SETFD, 0);
  fexecve(runtime, argv, environ);
  give_up("execute the release's edgebuild-run");
}

pid_t eb_launch_look(pid_t child, int *ended, int options) {
  pid_t found;
  do found = waitpid(child, ended, options);
  while (found < 0 && errno == EINTR);
  return found;
}

bool eb_launch_failed(int code) {
  /* ld.so exits with 127, for want of memory as of a library. */
  return code == EB_MEMORY || code == 127;
}
