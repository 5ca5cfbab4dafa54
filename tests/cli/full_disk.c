// A small disk: loaded before a program (LD_PRELOAD), it lets the files below the folder FULL_BELOW hold FULL_BYTES
// bytes in all, and then fails as a full disk does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

static __thread long long used;

static int add(const char *path, const struct stat *found, int type, struct FTW *at) {
    (void)path;
    (void)at;
    if (type == FTW_F) used += found->st_size;
    return 0;
}

static long long room(void) {
    used = 0;
    nftw(getenv("FULL_BELOW"), add, 16, FTW_PHYS);
    long long left = atoll(getenv("FULL_BYTES")) - used;
    return left < 0 ? 0 : left;
}

static int is_below(const char *path) {
    const char *folder = getenv("FULL_BELOW");
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_full(int fd, size_t bytes) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!is_below(path) || (long long)bytes <= room()) return 0;
    errno = ENOSPC;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t bytes) {
    return is_full(fd, bytes) ? -1 : NEXT(write)(fd, data, bytes);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    return is_full(fd, bytes) ? -1 : NEXT(pwrite)(fd, data, bytes, at);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    return is_full(fd, bytes) ? -1 : NEXT(pwrite64)(fd, data, bytes, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    return is_full(fd, bytes) ? -1 : NEXT(writev)(fd, parts, count);
}

int statfs64(const char *path, struct statfs64 *told) {
    char whole[PATH_MAX];
    int result = NEXT(statfs64)(path, told);
    if (result == 0 && realpath(path, whole) && is_below(whole)) told->f_bavail = room() / told->f_bsize;
    return result;
}

int statfs(const char *path, struct statfs *told) {
    char whole[PATH_MAX];
    int result = NEXT(statfs)(path, told);
    if (result == 0 && realpath(path, whole) && is_below(whole)) told->f_bavail = room() / told->f_bsize;
    return result;
}
