#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that the tests need and that are missing.
set -euo pipefail

links_sanitizers() {
  local scratch
  scratch="$(mktemp)"
  echo 'int main(void) { return 0; }' | clang -fsanitize=address,undefined,fuzzer-no-link -x c - -o "$scratch" 2>/dev/null
  local status=$?
  rm -f "$scratch"
  return $status
}

missing=()
command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
command -v make >/dev/null || missing+=(make)
command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user)
[ -e /usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1 ] || missing+=(libc6-arm64-cross)
[ -e /usr/riscv64-linux-gnu/lib/ld-linux-riscv64-lp64d.so.1 ] || missing+=(libc6-riscv64-cross)
command -v minisign >/dev/null || missing+=(minisign)
command -v skopeo >/dev/null || missing+=(skopeo)
command -v curl >/dev/null || missing+=(curl)
command -v openssl >/dev/null || missing+=(openssl)
command -v strace >/dev/null || missing+=(strace)
command -v ffmpeg >/dev/null || missing+=(ffmpeg)
command -v clang >/dev/null || missing+=(clang)
# Tests of power loss mount these file systems, where root may.
[ -e /usr/sbin/mkfs.ext4 ] || missing+=(e2fsprogs)
[ -e /usr/sbin/mkfs.xfs ] || missing+=(xfsprogs)
[ -e /usr/sbin/mkfs.btrfs ] || missing+=(btrfs-progs)
need_sanitizers=false
links_sanitizers || need_sanitizers=true
[ ${#missing[@]} -eq 0 ] && ! $need_sanitizers && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    printf 'error: missing packages: %s\nhint: install them as root\n' "${missing[*]} clang's libclang-rt" >&2
    exit 9
  }
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
if $need_sanitizers; then
  # The sanitizers' libraries must be of clang's own version; older releases have no package of the plain name.
  version="$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)"
  if apt-cache show "libclang-rt-${version}-dev" >/dev/null 2>&1; then
    missing+=("libclang-rt-${version}-dev")
  fi
fi
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
