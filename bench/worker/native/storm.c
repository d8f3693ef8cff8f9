/* Connects as fast as it can, asks once on every connection, keeps all open until all are answered; prints one line of JSON.
   storm PORT CONNECTIONS SECONDS: at most that many seconds. From 127.0.0.2 to 127.0.0.9, so that the ports suffice. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BURST 64
#define KEPT 512
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum phase { CONNECTING, ASKED, ANSWERED, FAILED };

struct connection {
    int descriptor;
    enum phase phase;
    double started, took;
    int length;
    char answer[KEPT];
};

static const char ask[] = "GET / HTTP/1.1\r\nHost: storm\r\n\r\n";
static struct connection *all;
static int poller, answered, refused, reset, other;

static double now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + moment.tv_nsec / 1e9;
}

static void fail(struct connection *one, int error) {
    one->phase = FAILED;
    if (error == ECONNREFUSED)
        refused++;
    else if (error == ECONNRESET || error == 0)
        reset++;
    else
        other++;
    close(one->descriptor);
}

static void begin(int number, int port) {
    struct connection *one = &all[number];
    struct sockaddr_in source = {.sin_family = AF_INET}, server = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1;
    one->started = now();
    one->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + number % 8);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(one->descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (one->descriptor < 0 || bind(one->descriptor, (struct sockaddr *)&source, sizeof source) < 0 ||
        (connect(one->descriptor, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)) {
        fail(one, errno);
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = number};
    epoll_ctl(poller, EPOLL_CTL_ADD, one->descriptor, &event);
}

static void send_question(int number) {
    struct connection *one = &all[number];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(one->descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error || send(one->descriptor, ask, sizeof ask - 1, MSG_NOSIGNAL) < 0) {
        fail(one, error ? error : errno);
        return;
    }
    one->phase = ASKED;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    epoll_ctl(poller, EPOLL_CTL_MOD, one->descriptor, &event);
}

static void read_answer(int number) {
    struct connection *one = &all[number];
    ssize_t got = recv(one->descriptor, one->answer + one->length, KEPT - 1 - one->length, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            fail(one, got == 0 ? 0 : errno);
        return;
    }
    one->length += got;
    if (one->length < 4 || memcmp(one->answer + one->length - 4, "pong", 4) != 0)
        return;
    if (memcmp(one->answer, "HTTP/1.1 200", 12) != 0) {
        fail(one, EPROTO);
        return;
    }
    one->phase = ANSWERED;
    one->took = now() - one->started;
    answered++;
    struct epoll_event event = {.events = 0, .data.u32 = number};
    epoll_ctl(poller, EPOLL_CTL_MOD, one->descriptor, &event);
}

static void handle(int wait) {
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, wait);
    for (int each = 0; each < count; each++) {
        int number = events[each].data.u32;
        if (all[number].phase == CONNECTING)
            send_question(number);
        else if (all[number].phase == ASKED)
            read_answer(number);
        else if (all[number].phase == ANSWERED) /* hung up after its answer: no longer of interest */
            epoll_ctl(poller, EPOLL_CTL_DEL, all[number].descriptor, NULL);
    }
}

static int compare(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "storm PORT CONNECTIONS SECONDS\n");
        return 2;
    }
    int port = atoi(arguments[1]), total = atoi(arguments[2]);
    double limit = atof(arguments[3]);
    struct rlimit descriptors;
    getrlimit(RLIMIT_NOFILE, &descriptors);
    descriptors.rlim_cur = descriptors.rlim_max;
    setrlimit(RLIMIT_NOFILE, &descriptors);
    all = calloc(total, sizeof *all);
    double *times = calloc(total + 1, sizeof *times);
    poller = epoll_create1(0);
    double started = now();
    for (int number = 0; number < total; number++) {
        begin(number, port);
        if (number % BURST == BURST - 1)
            handle(0);
    }
    double connecting = now() - started;
    while (answered + refused + reset + other < total && now() - started < limit)
        handle(50);
    double took = now() - started;
    int seen = 0;
    for (int number = 0; number < total; number++)
        if (all[number].phase == ANSWERED)
            times[seen++] = all[number].took;
    qsort(times, seen, sizeof *times, compare);
    printf("{\"connections\": %d, \"answered\": %d, \"refused\": %d, \"reset\": %d, \"other\": %d, \"waiting\": %d, "
           "\"seconds\": %.4f, \"connecting\": %.4f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}\n",
           total, answered, refused, reset, other, total - answered - refused - reset - other, took, connecting,
           seen ? times[seen / 2] * 1e3 : 0, seen ? times[(seen - 1) * 99 / 100] * 1e3 : 0, seen ? times[seen - 1] * 1e3 : 0);
    return 0;
}
