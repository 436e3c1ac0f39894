#include "trust_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream.h"

static bool use(char path[EB_PATH_MAX], const char *folder, const char *name) {
  snprintf(path, EB_PATH_MAX, "%s%s", folder, name);
  return access(path, F_OK) == 0;
}

void eb_trust_file_find(const char *option, char path[EB_PATH_MAX]) {
  const char *variable = getenv("EDGEBUILD_TRUST"), *home = getenv("HOME"), *config = getenv("XDG_CONFIG_HOME");
  const char *chosen = option ? option : variable && *variable ? variable : NULL;
  if (chosen) {
    snprintf(path, EB_PATH_MAX, "%s", chosen);
    return;
  }
  if (config && *config && use(path, config, "/edgebuild/trust")) return;
  if (home && use(path, home, "/.config/edgebuild/trust")) return;
  if (!use(path, "", "/etc/edgebuild/trust")) path[0] = 0;
}

eb_status eb_trust_file_missing(eb_error *error) {
  return eb_fail(error, EB_REFUSED, "give --trust FILE, or write ~/.config/edgebuild/trust with: edgebuild keys show",
                 "there is no trust file, so no bundle can be verified");
}

eb_status eb_trust_file_read(const char *path, uint8_t *buffer, size_t *size, eb_error *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open the trust file %s: %s", path, strerror(errno));
  struct eb_stream stream = {.name = path, .fd = fd};
  eb_status status = eb_stream_read(&stream, buffer, EB_TRUST_BYTES_MAX + 1, size, error);
  close(fd);
  return status;
}
