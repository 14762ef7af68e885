/* A bare chat client: the client protocol (docs/client_protocol.md) and nothing else. lab/bench/bare.py compiles it.

   client CLIENTS IN_FLIGHT LINE_MESSAGES COUNT SIZE FIRST_ID PORT...

   CLIENTS connections to 127.0.0.1, spread over the ports, send COUNT messages of SIZE bytes. Each keeps up to
   IN_FLIGHT messages unacknowledged, and packs up to LINE_MESSAGES into a CHAT line. Message n of client c is the text
   "c:n xxx...".
   It prints one JSON object: the seconds, percentiles of the time from a line to its ACK, and its own CPU seconds.
   It never sends a message again: an answer that asks for that ends it with exit code 1. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 1 << 16, OUTPUT = 1 << 18, HEAD = 64 };

struct line { long last; double since; };

struct client {
    int fd, id, blocked;
    long sent, acknowledged;
    char in[INPUT], *out;
    size_t in_size, out_at, out_size;
    struct line *lines;          /* a ring of in_flight + 1 lines that are not acknowledged */
    long first_line, end_line;
};

static long in_flight, line_messages, count, size, left, answered, measured;
static double *took;
static int epoll, welcomed;

static void fail(const char *what, const char *found) {
    fprintf(stderr, "%s: %s\n", what, found);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

static void flush(struct client *c) {
    while (c->out_at < c->out_size) {
        ssize_t done = write(c->fd, c->out + c->out_at, c->out_size - c->out_at);
        if (done < 0 && errno != EAGAIN) fail("write", strerror(errno));
        if (done < 0) break;
        c->out_at += done;
    }
    int blocked = c->out_at < c->out_size;
    if (!blocked) c->out_at = c->out_size = 0;
    if (blocked != c->blocked) {
        struct epoll_event event = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
        c->blocked = blocked;
    }
}

/* Send CHAT lines until in_flight messages are unacknowledged, or the socket accepts no more. */
static void fill(struct client *c) {
    while (!c->blocked) {
        long room = in_flight - (c->sent - c->acknowledged), some = line_messages;
        if (some > room) some = room;
        if (some > left) some = left;
        size_t needed = HEAD + some * (size + 3);
        if (some <= 0 || c->out_size + needed > OUTPUT) {
            if (!c->out_size) return;
            flush(c);
            continue;
        }
        char *to = c->out + c->out_size;
        to += sprintf(to, "{\"type\":\"CHAT\",\"first\":%ld,\"payloads\":[", c->sent + 1);
        for (long n = c->sent + 1; n <= c->sent + some; n++) {
            *to++ = '"';
            memset(to, 'x', size);
            char head[HEAD];
            long length = sprintf(head, "%d:%ld ", c->id, n);
            memcpy(to, head, length < size ? length : size);
            to += size;
            *to++ = '"';
            *to++ = ',';
        }
        memcpy(to - 1, "]}\n", 3);
        c->out_size = to + 2 - c->out;
        c->sent += some;
        left -= some;
        c->lines[c->end_line++ % (in_flight + 1)] = (struct line){c->sent, now()};
    }
}

static void on_ack(struct client *c, const char *text) {
    const char *found = strstr(text, "\"n\":");
    long n = found ? atol(found + 4) : 0;
    if (n <= c->acknowledged || n > c->sent) fail("unexpected ACK", text);
    answered += n - c->acknowledged;
    c->acknowledged = n;
    double at = now();
    for (; c->first_line < c->end_line && c->lines[c->first_line % (in_flight + 1)].last <= n; c->first_line++)
        took[measured++] = at - c->lines[c->first_line % (in_flight + 1)].since;
}

/* Read what has arrived and handle its complete lines. */
static void receive(struct client *c) {
    ssize_t got = read(c->fd, c->in + c->in_size, INPUT - 1 - c->in_size);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) fail("read", got ? strerror(errno) : "the node closed the connection");
    c->in_size += got;
    c->in[c->in_size] = 0;
    char *at = c->in, *end;
    for (; (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        if (!strncmp(at, "{\"type\":\"ACK\"", 13)) on_ack(c, at);
        else if (!strncmp(at, "{\"type\":\"WELCOME\"", 17) && !strstr(at, "\"leader\":0,")) welcomed++;
        else fail("allowed: ACK, and WELCOME from a node that knows a leader; found", at);
    }
    c->in_size -= at - c->in;
    memmove(c->in, at, c->in_size);
    if (c->in_size == INPUT - 1) fail("a line is too long", c->in);
}

static void dial(struct client *c, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (dprintf(c->fd, "{\"type\":\"HELLO\",\"client_id\":%d}\n", c->id) < 0) fail("write", strerror(errno));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double cpu(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

int main(int argc, char **argv) {
    if (argc < 8) fail("usage", "client CLIENTS IN_FLIGHT LINE_MESSAGES COUNT SIZE FIRST_ID PORT...");
    int clients = atoi(argv[1]);
    in_flight = atol(argv[2]), line_messages = atol(argv[3]), left = count = atol(argv[4]), size = atol(argv[5]);
    if (HEAD + line_messages * (size + 3) > OUTPUT) fail("LINE_MESSAGES times SIZE", "more than the buffer holds");
    struct client *all = calloc(clients, sizeof *all);
    took = calloc(count, sizeof *took);
    epoll = epoll_create1(0);
    for (int i = 0; i < clients; i++) {
        all[i].id = atoi(argv[6]) + i;
        all[i].out = malloc(OUTPUT);
        all[i].lines = calloc(in_flight + 1, sizeof *all[i].lines);
        dial(&all[i], atoi(argv[7 + i % (argc - 7)]));
    }
    double began = 0, cpu_before = 0;
    while (answered < count) {
        struct epoll_event events[64];
        int some = epoll_wait(epoll, events, 64, 10000);
        if (some <= 0) fail("no answer within 10 s", "gave up");
        for (int i = 0; i < some; i++) {
            struct client *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & ~EPOLLOUT) receive(c);
            if (began) fill(c);
        }
        if (!began && welcomed == clients) {
            began = now(), cpu_before = cpu();
            for (int i = 0; i < clients; i++) fill(&all[i]);
        }
    }
    double seconds = now() - began;
    qsort(took, measured, sizeof *took, ascending);
    printf("{\"seconds\":%f,\"p50_ms\":%f,\"p99_ms\":%f,\"p999_ms\":%f,\"cpu_s\":%f}\n", seconds,
           took[measured / 2] * 1e3, took[measured * 99 / 100] * 1e3, took[measured * 999 / 1000] * 1e3,
           cpu() - cpu_before);
}
