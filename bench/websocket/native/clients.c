/* WebSocket and event-stream clients on one thread, from 127.0.0.2 to 127.0.0.9, so that the ports suffice. Pings are answered.
   What was seen is printed as one line of JSON.

   clients echo PORT PATH CONNECTIONS SECONDS BYTES PAUSE    each connection sends a text, waits for its echo, pauses (ms), again
   clients fan PORT PATH SUBSCRIBERS MESSAGES BYTES POST     posts a text to POST, the next one when all subscribers have it
   clients listen PORT PATH CONNECTIONS MESSAGES PID         only connections that are greeted with "pid PID" are kept; then
                                                             texts "NUMBER NANOSECONDS", numbered from 1, until all have all
   clients hold PORT PATH KIND                               KIND is websocket or events; obeys lines on its standard input:
                                                             open N, count, close; each is answered with a line of JSON */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 64       /* handshakes under way */
#define KEPT 125         /* bytes of a payload that are looked at */
#define READ (256 << 10) /* bytes read at a time */
#define SLOTS 2000000    /* of the histogram, one a microsecond */
#define PATIENCE 30.0    /* seconds without any progress after which it gives up */
#define WARM 0.5         /* seconds of echoes that do not count */
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum phase { CONNECTING, SHAKING, OPEN, OVER };
enum opcode { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

struct client {
    int descriptor;
    uint8_t phase, matched, head[10], have, opcode, kept;
    uint64_t left, sent, received;
    uint8_t payload[KEPT];
};

static struct client *all;
static int poller, port, opened, failed, under_way, begun;
static const char *path;
static int events_only;
static void (*when_open)(struct client *);
static void (*when_text)(struct client *, uint64_t length);
static uint32_t *histogram;
static uint64_t measured, worst, moment;
static char *buffer;

static uint64_t nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + time.tv_nsec;
}

static double seconds(void) { return nanoseconds() / 1e9; }

static void note(uint64_t since) {
    uint64_t took = (moment > since ? moment - since : 0) / 1000;
    if (took > worst)
        worst = took;
    histogram[took < SLOTS ? took : SLOTS - 1]++;
    measured++;
}

static double percentile(double share) {
    uint64_t wanted = share * measured, seen = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        if ((seen += histogram[slot]) > wanted)
            return slot / 1e3;
    return worst / 1e3;
}

static void forget_times(void) {
    memset(histogram, 0, SLOTS * sizeof *histogram);
    measured = worst = 0;
}

static int connected(int source, int nonblocking) {
    struct sockaddr_in from = {.sin_family = AF_INET}, server = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1, descriptor = socket(AF_INET, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + source % 8);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&from, sizeof from) < 0 ||
        (connect(descriptor, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)) {
        if (descriptor >= 0)
            close(descriptor);
        return -1;
    }
    return descriptor;
}

static void end(struct client *one) {
    if (one->phase == OVER)
        return;
    if (one->phase == OPEN)
        opened--;
    else
        under_way--;
    failed++;
    one->phase = OVER;
    close(one->descriptor);
}

/* A client's frame, masked with noughts, so that its payload travels as it is. Payloads of up to 65,535 bytes. */
static void send_frame(struct client *one, int opcode, const void *payload, size_t length) {
    uint8_t frame[8 + 65536];
    size_t at = 2;
    frame[0] = 0x80 | opcode;
    if (length < 126) {
        frame[1] = 0x80 | length;
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = length >> 8;
        frame[3] = length;
        at = 4;
    }
    memset(frame + at, 0, 4);
    memcpy(frame + at + 4, payload, length);
    if (send(one->descriptor, frame, at + 4 + length, MSG_NOSIGNAL) < (ssize_t)(at + 4 + length))
        end(one); /* what is sent here always fits: a client waits for its echo */
}

static void begin(struct client *one, int number) {
    memset(one, 0, sizeof *one);
    one->descriptor = connected(number, 1);
    under_way++;
    if (one->descriptor < 0) {
        one->phase = CONNECTING;
        under_way--;
        failed++;
        one->phase = OVER;
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = one};
    epoll_ctl(poller, EPOLL_CTL_ADD, one->descriptor, &event);
}

static void shake(struct client *one) {
    char head[512];
    const char *upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    int length = snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n", path, port,
                          events_only ? "Accept: text/event-stream\r\n" : upgrade);
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(one->descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error || send(one->descriptor, head, length, MSG_NOSIGNAL) < length) {
        end(one);
        return;
    }
    one->phase = SHAKING;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    epoll_ctl(poller, EPOLL_CTL_MOD, one->descriptor, &event);
}

static void frame_done(struct client *one, uint64_t length) {
    if (one->opcode == PING)
        send_frame(one, PONG, one->payload, one->kept);
    else if (one->opcode == CLOSE)
        end(one);
    else if (one->opcode != PONG && when_text)
        when_text(one, length);
}

static size_t head_length(const struct client *one) {
    if (one->have < 2)
        return 2;
    return (one->head[1] & 127) == 127 ? 10 : (one->head[1] & 127) == 126 ? 4 : 2;
}

static uint64_t payload_length(const struct client *one) {
    uint64_t length = one->head[1] & 127;
    if (length < 126)
        return length;
    int bytes = length == 126 ? 2 : 8;
    length = 0;
    for (int each = 0; each < bytes; each++)
        length = length << 8 | one->head[2 + each];
    return length;
}

static void take(struct client *one, const uint8_t *data, size_t length) {
    while (one->phase == OPEN) {
        while (one->have < head_length(one) && length) {
            one->head[one->have++] = *data++;
            length--;
            if (one->have >= 2 && one->have == head_length(one)) {
                one->left = payload_length(one);
                one->opcode = one->head[0] & 15;
                one->kept = 0;
            }
        }
        if (one->have < 2 || one->have < head_length(one))
            return;
        size_t now = one->left < length ? one->left : length, room = KEPT - one->kept;
        memcpy(one->payload + one->kept, data, now < room ? now : room);
        one->kept += now < room ? now : room;
        data += now;
        length -= now;
        one->left -= now;
        if (one->left)
            return;
        uint64_t whole = payload_length(one);
        one->have = 0;
        frame_done(one, whole);
    }
}

static void shaken(struct client *one, const char *data, size_t length) {
    const char *blank = memmem(data, length, "\r\n\r\n", 4); /* a head arrives whole: it is small, and written at once */
    if (!blank || memcmp(data, events_only ? "HTTP/1.1 200" : "HTTP/1.1 101", 12) != 0) {
        if (failed < 3)
            fprintf(stderr, "refused: %.*s\n", (int)(length < 80 ? length : 80), data);
        end(one);
        return;
    }
    under_way--;
    opened++;
    one->phase = OPEN;
    if (when_open)
        when_open(one);
    if (!events_only)
        take(one, (const uint8_t *)blank + 4, length - (blank + 4 - data));
}

static void readable(struct client *one) {
    ssize_t got = recv(one->descriptor, buffer, READ, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            end(one);
        return;
    }
    if (one->phase == SHAKING)
        shaken(one, buffer, got);
    else if (!events_only)
        take(one, (const uint8_t *)buffer, got);
}

static int poll_clients(int wait) {
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, wait);
    for (int each = 0; each < count; each++) {
        struct client *one = events[each].data.ptr;
        if (!one || one->phase == OVER)
            continue;
        moment = nanoseconds();
        if (one->phase == CONNECTING)
            shake(one);
        else
            readable(one);
    }
    return count;
}

static void open_all(int count) {
    int until = begun + count;
    double progress = seconds();
    while (begun < until || under_way) {
        while (begun < until && under_way < AT_ONCE) {
            begin(&all[begun], begun);
            begun++;
        }
        if (poll_clients(20) > 0)
            progress = seconds();
        else if (seconds() - progress > PATIENCE)
            break;
    }
}

static void need(int there, int count) {
    if (there < count) {
        fprintf(stderr, "only %d of %d connections were opened\n", there, count);
        exit(1);
    }
}

/* echo */

static char *text;
static size_t text_length;
static double pause_seconds;
static uint64_t echoes, all_echoes;

static void say(struct client *one) {
    one->sent = nanoseconds();
    send_frame(one, TEXT, text, text_length);
}

static void echoed(struct client *one, uint64_t length) {
    if (length != text_length) {
        end(one);
        return;
    }
    note(one->sent);
    echoes++;
    all_echoes++;
    one->received = moment;
    one->sent = 0;
    if (!pause_seconds)
        say(one);
}

static void echo(int count, double lasting, int bytes, double pause) {
    text_length = bytes;
    text = malloc(bytes + 1);
    memset(text, 'x', bytes);
    open_all(count);
    need(opened, count);
    pause_seconds = pause / 1e3;
    when_text = echoed;
    for (int each = 0; each < count; each++)
        say(&all[each]);
    double started = seconds(), warm = started + (lasting > 4 * WARM ? WARM : 0);
    int counting = 0;
    while (seconds() < started + lasting) {
        if (!counting && seconds() >= warm) {
            forget_times();
            echoes = 0;
            counting = 1;
            warm = seconds();
        }
        poll_clients(pause_seconds ? 1 : 20);
        for (int each = 0; pause_seconds && each < count; each++)
            if (all[each].phase == OPEN && !all[each].sent && nanoseconds() - all[each].received >= pause_seconds * 1e9)
                say(&all[each]);
    }
    double took = seconds() - warm;
    uint64_t longest = worst; /* who was never answered waited longest of all */
    for (int each = 0; each < count; each++)
        if (all[each].phase == OPEN && all[each].sent && (nanoseconds() - all[each].sent) / 1000 > longest)
            longest = (nanoseconds() - all[each].sent) / 1000;
    printf("{\"messages\": %lu, \"with_warming\": %lu, \"seconds\": %.4f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, \"failed\": %d}\n",
           echoes, all_echoes, took, percentile(0.5), percentile(0.99), longest / 1e3, failed);
}

/* fan */

static uint64_t deliveries, published;

static void delivered(struct client *one, uint64_t length) {
    (void)one;
    if (length == text_length) {
        note(published);
        deliveries++;
    }
}

static void publish(int descriptor, const char *where) {
    char head[512], answer[4096];
    int length = snprintf(head, sizeof head,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n",
                          where, port, text_length);
    char *request = malloc(length + text_length);
    memcpy(request, head, length);
    memcpy(request + length, text, text_length);
    published = nanoseconds();
    if (send(descriptor, request, length + text_length, MSG_NOSIGNAL) < 0)
        exit(1);
    free(request);
    while (recv(descriptor, answer, sizeof answer, MSG_DONTWAIT) > 0) /* of the one before */
        ;
}

static void fan(int count, int messages, int bytes, const char *where) {
    text_length = bytes;
    text = malloc(bytes + 1);
    memset(text, 'x', bytes);
    open_all(count);
    need(opened, count);
    sleep(1); /* for whatever the servers do after a handshake */
    poll_clients(0);
    when_text = delivered;
    int poster = connected(0, 0), warm = messages > 10 ? 3 : 1;
    double started = 0, slowest = 0, sum = 0;
    for (int number = 0; number < messages + warm; number++) {
        if (number == warm) {
            forget_times();
            deliveries = 0;
            sum = slowest = 0;
            started = seconds();
        }
        uint64_t target = deliveries + count;
        double progress = seconds(), sent = progress;
        publish(poster, where);
        while (deliveries < target) {
            if (poll_clients(50) > 0)
                progress = seconds();
            else if (seconds() - progress > 10) {
                fprintf(stderr, "stalled: %lu of %lu deliveries\n", deliveries, target);
                exit(1);
            }
        }
        double took = seconds() - sent;
        sum += took;
        slowest = took > slowest ? took : slowest;
    }
    double took = seconds() - started;
    printf("{\"deliveries\": %lu, \"seconds\": %.4f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"last_ms\": %.3f, \"worst_ms\": %.3f, "
           "\"failed\": %d}\n",
           deliveries, took, percentile(0.5), percentile(0.99), sum / messages * 1e3, slowest * 1e3, failed);
}

/* listen */

static char greeting[64];
static int matched;
static uint64_t lost, repeated, total;

static void heard(struct client *one, uint64_t length) {
    char said[KEPT + 1];
    (void)length;
    memcpy(said, one->payload, one->kept);
    said[one->kept] = 0;
    if (!one->matched) {
        if (strcmp(said, greeting) != 0) {
            one->matched = 2; /* another worker's: kept until all are there, or newcomers would go to that one */
            return;
        }
        one->matched = 1;
        matched++;
        return;
    }
    if (one->matched != 1)
        return;
    char *rest;
    uint64_t number = strtoull(said, &rest, 10), sent = strtoull(rest, NULL, 10);
    note(sent);
    total++;
    if (number <= one->received)
        repeated++;
    else
        lost += number - one->received - 1;
    one->received = number > one->received ? number : one->received;
}

static void listen_to(int count, int messages, const char *pid) {
    snprintf(greeting, sizeof greeting, "pid %s", pid);
    when_text = heard;
    double started = seconds();
    while (matched < count && begun < 40 * count && seconds() - started < PATIENCE) {
        open_all(1);
        for (double until = seconds() + 1; seconds() < until && all[begun - 1].phase == OPEN && !all[begun - 1].matched;)
            poll_clients(5);
    }
    need(matched, count);
    for (int each = 0; each < begun; each++)
        if (all[each].matched != 1)
            end(&all[each]);
    printf("{\"ready\": %d}\n", matched);
    fflush(stdout);
    double progress = seconds();
    uint64_t wanted = (uint64_t)count * messages;
    while (total < wanted && seconds() - progress < 10)
        if (poll_clients(20) > 0)
            progress = seconds();
    poll_clients(200); /* whatever comes twice */
    for (int each = 0; each < begun; each++)
        if (all[each].matched == 1 && all[each].received < (uint64_t)messages)
            lost += messages - all[each].received;
    printf("{\"deliveries\": %lu, \"lost\": %lu, \"repeated\": %lu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n", total,
           lost, repeated, percentile(0.5), percentile(0.99), worst / 1e3);
}

/* hold */

static void answer_order(const char *line) {
    double started = seconds();
    int before = failed;
    if (strncmp(line, "open ", 5) == 0) {
        open_all(atoi(line + 5));
    } else if (strncmp(line, "close", 5) == 0) {
        for (int each = 0; each < begun; each++)
            end(&all[each]);
        begun = failed = before = 0;
    } else {
        while (poll_clients(0) > 0)
            ;
    }
    printf("{\"held\": %d, \"failed\": %d, \"seconds\": %.4f}\n", opened, failed - before, seconds() - started);
    fflush(stdout);
}

static void hold(const char *kind) {
    static char line[128];
    int length = 0;
    events_only = strcmp(kind, "events") == 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    int both = epoll_create1(0), there = 1;
    epoll_ctl(both, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    event.data.ptr = &there;
    epoll_ctl(both, EPOLL_CTL_ADD, poller, &event);
    while (epoll_wait(both, &event, 1, -1) >= 0) {
        if (event.data.ptr) {
            poll_clients(0);
            continue;
        }
        ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
        if (got <= 0)
            return;
        length += got;
        line[length] = 0;
        if (strchr(line, '\n')) {
            answer_order(line);
            length = 0;
        }
    }
}

static int usage(void) {
    fprintf(stderr, "clients echo PORT PATH CONNECTIONS SECONDS BYTES PAUSE\n"
                    "clients fan PORT PATH SUBSCRIBERS MESSAGES BYTES POST\n"
                    "clients listen PORT PATH CONNECTIONS MESSAGES PID\n"
                    "clients hold PORT PATH websocket|events\n");
    return 2;
}

int main(int count, char **arguments) {
    if (count < 5)
        return usage();
    const char *order = arguments[1];
    struct rlimit descriptors;
    getrlimit(RLIMIT_NOFILE, &descriptors);
    descriptors.rlim_cur = descriptors.rlim_max;
    setrlimit(RLIMIT_NOFILE, &descriptors);
    port = atoi(arguments[2]);
    path = arguments[3];
    all = calloc(descriptors.rlim_max < 1000000 ? descriptors.rlim_max : 1000000, sizeof *all);
    histogram = calloc(SLOTS, sizeof *histogram);
    buffer = malloc(READ);
    poller = epoll_create1(0);
    if (strcmp(order, "hold") == 0)
        hold(arguments[4]);
    else if (strcmp(order, "echo") == 0 && count == 8)
        echo(atoi(arguments[4]), atof(arguments[5]), atoi(arguments[6]), atof(arguments[7]));
    else if (strcmp(order, "fan") == 0 && count == 8)
        fan(atoi(arguments[4]), atoi(arguments[5]), atoi(arguments[6]), arguments[7]);
    else if (strcmp(order, "listen") == 0 && count == 7)
        listen_to(atoi(arguments[4]), atoi(arguments[5]), arguments[6]);
    else
        return usage();
    return 0;
}
