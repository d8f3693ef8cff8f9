// The routes of the benchmark's Flask application, in Go with Gin. `gin PORT` listens on 127.0.0.1.
package main

import (
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
)

func main() {
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.GET("/", func(c *gin.Context) { c.String(http.StatusOK, "pong") })
	router.GET("/waiting", func(c *gin.Context) {
		time.Sleep(100 * time.Millisecond)
		c.String(http.StatusOK, "pong")
	})
	router.GET("/livez", func(c *gin.Context) { c.String(http.StatusOK, "alive") })
	router.GET("/pid", func(c *gin.Context) { c.String(http.StatusOK, strconv.Itoa(os.Getpid())) })
	router.GET("/collect", func(c *gin.Context) {
		started := time.Now()
		runtime.GC()
		took := time.Since(started)
		debug.FreeOSMemory() // Go keeps freed pages for later: what is measured is what it needs.
		c.JSON(http.StatusOK, gin.H{"milliseconds": float64(took.Microseconds()) / 1000})
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], router); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}
