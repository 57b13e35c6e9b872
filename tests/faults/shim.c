/* Faults in a process's file operations, preloaded: the process is killed at one of them, the disk is full after so many
   bytes, or a read fails. Only files below one folder count. Nothing happens until `fault_arm` is called; processes that
   this one starts take the same fault from the environment (FAULT_ROOT, FAULT_KIND, FAULT_AT). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, COUNT, KILL_BEFORE, KILL_AFTER, FULL, UNREADABLE };

static char root[PATH_MAX];
static int kind = NONE;
static long at;
static atomic_long changes, bytes, reads;

void fault_arm(const char *folder, int what, long when) {
    snprintf(root, sizeof root, "%s", folder);
    at = when;
    changes = bytes = reads = 0;
    kind = what;
}

long fault_changes(void) { return changes; }
long fault_bytes(void) { return bytes; }
long fault_reads(void) { return reads; }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("FAULT_ROOT"), *what = getenv("FAULT_KIND"), *when = getenv("FAULT_AT");
    if (folder && what && when)
        fault_arm(folder, atoi(what), atol(when));
}

static int below(const char *path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int watched_path(int folder, const char *path) {
    char whole[2 * PATH_MAX], link[64], base[PATH_MAX];
    if (!kind || !path)
        return 0;
    if (path[0] == '/')
        return below(path);
    ssize_t length;
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base))
            return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if ((length = readlink(link, base, sizeof base - 1)) < 0)
            return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return below(whole);
}

static int watched(int file) { return watched_path(file, "."); }

/* A change of files: the process may end before it or, told by `done`, after it. */
static void change(int done) {
    if (!done)
        changes++;
    if (changes == at && kind == (done ? KILL_AFTER : KILL_BEFORE)) {
        kill(getpid(), SIGKILL);
        pause();
    }
}

/* How many of `wanted` bytes still find room; -1 with ENOSPC for none. */
static ssize_t room(size_t wanted) {
    long left = at - bytes;
    if (kind != FULL || (long)wanted <= left)
        return (ssize_t)wanted;
    errno = ENOSPC;
    return left > 0 ? left : -1;
}

static int unreadable(void) {
    if (++reads < at || kind != UNREADABLE)
        return 0;
    errno = EIO;
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGE(name, is_watched, ...) \
    REAL(name); \
    if (!(is_watched)) return real(__VA_ARGS__); \
    change(0); \
    int result = real(__VA_ARGS__), number = errno; \
    change(1); \
    errno = number; \
    return result

int rename(const char *from, const char *to) { CHANGE(rename, watched_path(AT_FDCWD, to), from, to); }
int renameat(int a, const char *from, int b, const char *to) { CHANGE(renameat, watched_path(b, to), a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    CHANGE(renameat2, watched_path(b, to), a, from, b, to, flags);
}
int unlink(const char *path) { CHANGE(unlink, watched_path(AT_FDCWD, path), path); }
int unlinkat(int folder, const char *path, int flags) { CHANGE(unlinkat, watched_path(folder, path), folder, path, flags); }
int mkdir(const char *path, mode_t mode) { CHANGE(mkdir, watched_path(AT_FDCWD, path), path, mode); }
int rmdir(const char *path) { CHANGE(rmdir, watched_path(AT_FDCWD, path), path); }
int link(const char *from, const char *to) { CHANGE(link, watched_path(AT_FDCWD, to), from, to); }
int symlink(const char *from, const char *to) { CHANGE(symlink, watched_path(AT_FDCWD, to), from, to); }
int ftruncate(int file, off_t size) { CHANGE(ftruncate, watched(file), file, size); }
int ftruncate64(int file, off64_t size) { CHANGE(ftruncate64, watched(file), file, size); }

/* Blocks that are asked for beforehand count as written. */
#define ALLOCATE(name, offset_type) \
    int name(int file, offset_type offset, offset_type length) { \
        REAL(name); \
        if (!watched(file)) return real(file, offset, length); \
        change(0); \
        if (room((size_t)length) < (ssize_t)length) return ENOSPC; \
        int result = real(file, offset, length); \
        if (!result) bytes += length; \
        change(1); \
        return result; \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

#define OPEN(name, folder, ...) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    REAL(name); \
    int counts = (flags & (O_CREAT | O_TRUNC)) && watched_path(folder, path); \
    if (counts) change(0); \
    int result = real(__VA_ARGS__, mode), number = errno; \
    if (counts) change(1); \
    errno = number; \
    return result

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, path, flags); }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, path, flags); }
int openat(int folder, const char *path, int flags, ...) { OPEN(openat, folder, folder, path, flags); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder, folder, path, flags); }

#define WRITE(name, size, part, whole) \
    REAL(name); \
    if (!watched(file)) return real whole; \
    change(0); \
    ssize_t fits = room(size); \
    if (fits < 0) return -1; \
    ssize_t result = fits < (ssize_t)(size) ? part : real whole; \
    int number = errno; \
    if (result > 0) bytes += result; \
    change(1); \
    errno = number; \
    return result

ssize_t write(int file, const void *data, size_t size) { WRITE(write, size, real(file, data, (size_t)fits), (file, data, size)); }
ssize_t pwrite(int file, const void *data, size_t size, off_t to) {
    WRITE(pwrite, size, real(file, data, (size_t)fits, to), (file, data, size, to));
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t to) {
    WRITE(pwrite64, size, real(file, data, (size_t)fits, to), (file, data, size, to));
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    WRITE(writev, size, (errno = ENOSPC, -1), (file, parts, count));
}
ssize_t sendfile(int file, int from, off_t *offset, size_t size) {
    WRITE(sendfile, size, real(file, from, offset, (size_t)fits), (file, from, offset, size));
}
ssize_t sendfile64(int file, int from, off64_t *offset, size_t size) {
    WRITE(sendfile64, size, real(file, from, offset, (size_t)fits), (file, from, offset, size));
}

#define READ(name, ...) \
    REAL(name); \
    if (kind && watched(file) && unreadable()) return -1; \
    return real(__VA_ARGS__)

ssize_t read(int file, void *data, size_t size) { READ(read, file, data, size); }
ssize_t pread(int file, void *data, size_t size, off_t from) { READ(pread, file, data, size, from); }
ssize_t pread64(int file, void *data, size_t size, off64_t from) { READ(pread64, file, data, size, from); }
ssize_t readv(int file, const struct iovec *parts, int count) { READ(readv, file, parts, count); }
