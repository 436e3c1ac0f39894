#include "trust_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream.h"

eb_status eb_trust_file_find(const char *option, char path[EB_PATH_MAX], eb_error *error) {
  const char *variable = getenv("EDGEBUILD_TRUST"), *home = getenv("HOME");
  const char *chosen = option ? option : variable && *variable ? variable : NULL;
  if (chosen) {
    snprintf(path, EB_PATH_MAX, "%s", chosen);
    return EB_OK;
  }
  const char *config = getenv("XDG_CONFIG_HOME");
  if (config && *config) {
    snprintf(path, EB_PATH_MAX, "%s/edgebuild/trust", config);
    if (access(path, F_OK) == 0) return EB_OK;
  }
  snprintf(path, EB_PATH_MAX, "%s/.config/edgebuild/trust", home ? home : "");
  if (home && access(path, F_OK) == 0) return EB_OK;
  snprintf(path, EB_PATH_MAX, "/etc/edgebuild/trust");
  if (access(path, F_OK) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "give --trust FILE, or write ~/.config/edgebuild/trust with: edgebuild keys show",
                 "there is no trust file, so no bundle can be verified");
}

eb_status eb_trust_file_read(const char *path, uint8_t *buffer, eb_bytes *trust, eb_error *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open the trust file %s: %s", path, strerror(errno));
  struct eb_stream stream = {.name = path, .fd = fd};
  *trust = (eb_bytes){buffer, 0};
  eb_status status = eb_stream_read(&stream, buffer, EB_TRUST_BYTES_MAX + 1, &trust->size, error);
  close(fd);
  return status;
}
