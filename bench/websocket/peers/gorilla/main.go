// The routes of the benchmark's applications, in Go: Gin, and gorilla/websocket with a hub. `gorilla PORT` listens on 127.0.0.1.
package main

import (
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/gorilla/websocket"
)

const (
	pingInterval = 25 * time.Second
	pongWait     = 35 * time.Second
	queued       = 256
)

var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

type subscriber struct {
	connection *websocket.Conn
	queue      chan *websocket.PreparedMessage
}

// hub passes one prepared message to every subscriber, and lets go of those whose queue is full, as gorilla's chat example does.
type hub struct {
	sync.RWMutex
	subscribers map[*subscriber]struct{}
}

func (h *hub) publish(text []byte) int {
	prepared, err := websocket.NewPreparedMessage(websocket.TextMessage, text)
	if err != nil {
		return 0
	}
	h.RLock()
	defer h.RUnlock()
	for each := range h.subscribers {
		select {
		case each.queue <- prepared:
		default:
			each.connection.Close()
		}
	}
	return len(h.subscribers)
}

func (h *hub) serve(connection *websocket.Conn) {
	one := &subscriber{connection, make(chan *websocket.PreparedMessage, queued)}
	h.Lock()
	h.subscribers[one] = struct{}{}
	h.Unlock()
	gone := make(chan struct{})
	go one.write(gone)
	connection.SetReadDeadline(time.Now().Add(pongWait))
	connection.SetPongHandler(func(string) error { return connection.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		if _, _, err := connection.ReadMessage(); err != nil {
			break
		}
	}
	h.Lock()
	delete(h.subscribers, one)
	h.Unlock()
	close(gone)
	connection.Close()
}

func (one *subscriber) write(gone chan struct{}) {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		select {
		case prepared := <-one.queue:
			if one.connection.WritePreparedMessage(prepared) != nil {
				return
			}
		case <-ticker.C:
			if one.connection.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		case <-gone:
			return
		}
	}
}

func echo(connection *websocket.Conn) {
	defer connection.Close()
	for {
		kind, message, err := connection.ReadMessage()
		if err != nil || connection.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func upgraded(serve func(*websocket.Conn)) gin.HandlerFunc {
	return func(c *gin.Context) {
		if connection, err := upgrader.Upgrade(c.Writer, c.Request, nil); err == nil {
			serve(connection)
		}
	}
}

func events(c *gin.Context) {
	c.Header("Content-Type", "text/event-stream")
	c.Header("Cache-Control", "no-store")
	c.Writer.Flush()
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.Writer.WriteString(":\n\n")
			c.Writer.Flush()
		case <-c.Request.Context().Done():
			return
		}
	}
}

func main() {
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	all := &hub{subscribers: map[*subscriber]struct{}{}}
	router.GET("/", func(c *gin.Context) { c.String(http.StatusOK, "pong") })
	router.GET("/pid", func(c *gin.Context) { c.String(http.StatusOK, strconv.Itoa(os.Getpid())) })
	router.GET("/collect", func(c *gin.Context) {
		started := time.Now()
		debug.FreeOSMemory() // Collects, and gives back what it keeps for later: what is measured is what it needs.
		c.JSON(http.StatusOK, gin.H{"milliseconds": float64(time.Since(started).Microseconds()) / 1000, "goroutines": runtime.NumGoroutine()})
	})
	router.GET("/echo", upgraded(echo))
	router.GET("/hub", upgraded(all.serve))
	router.GET("/events", events)
	router.POST("/publish", func(c *gin.Context) {
		text, err := io.ReadAll(c.Request.Body)
		if err != nil {
			c.Status(http.StatusBadRequest)
			return
		}
		c.String(http.StatusOK, strconv.Itoa(all.publish(text)))
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], router); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}
