#include "unzstd.h"

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

bool eb_unzstd_open(struct eb_unzstd *unzstd, eb_bytes prefix) {
  ZSTD_DStream *stream = ZSTD_initStaticDStream(unzstd->memory, sizeof unzstd->memory);
  unzstd->context = stream;
  if (!stream || ZSTD_isError(ZSTD_DCtx_setParameter(stream, ZSTD_d_windowLogMax, EB_UNZSTD_WINDOW_LOG))) return false;
  if (!prefix.size) return true;
  const ZSTD_DDict *dictionary = ZSTD_initStaticDDict(unzstd->prefix_memory, sizeof unzstd->prefix_memory, prefix.data,
                                                      prefix.size, ZSTD_dlm_byRef, ZSTD_dct_rawContent);
  return dictionary && !ZSTD_isError(ZSTD_DCtx_refDDict(stream, dictionary));
}

bool eb_unzstd_run(struct eb_unzstd *unzstd, eb_bytes *in, void *out, size_t *made, bool *ended) {
  ZSTD_inBuffer input = {in->data, in->size, 0};
  ZSTD_outBuffer output = {out, *made, 0};
  size_t left = ZSTD_decompressStream(unzstd->context, &output, &input);
  if (ZSTD_isError(left) || (left && !input.pos && !output.pos)) return false;
  in->data = (const uint8_t *)in->data + input.pos;
  in->size -= input.pos;
  *made = output.pos;
  *ended = left == 0;
  return true;
}
