package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"bailiwick/dataplane"
)

// What a supervisor such as systemd says to this process and hears of it: the sockets it opened for it (LISTEN_FDS), that it
// serves and which process does (NOTIFY_SOCKET), and SIGUSR2, upon which another process takes this one's place.

const firstFD = 3 // of those that systemd passes

// inherited are the sockets that the supervisor opened for this very process.
func inherited() ([]dataplane.Inherited, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) // a process that takes over gets them from this one
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 16 {
		return nil, fmt.Errorf("LISTEN_FDS=%q: a number up to 16 is expected", count)
	}
	var out []dataplane.Inherited
	for i, name := range strings.Split(names, ":") {
		if i < n {
			syscall.CloseOnExec(firstFD + i)
			out = append(out, dataplane.Inherited{Name: name, File: os.NewFile(uintptr(firstFD+i), name)})
		}
	}
	if len(out) < n {
		return nil, fmt.Errorf("LISTEN_FDNAMES=%q names %d of %d sockets; they are https, http, h3, relay, admin, dns-udp and dns-tcp", names, len(out), n)
	}
	return out, nil
}

// tell says something to the supervisor, if there is one that listens.
func tell(what string) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return
	}
	if address[0] == '@' {
		address = "\x00" + address[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(what))
}

// replaces starts another process of this program, as it is on disk now, in this one's place upon SIGUSR2. What it returns
// ends that.
func replaces(log *slog.Logger) (stop func()) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR2)
	var r replacer
	r.wg.Go(func() {
		for range asked {
			if err := r.once(log, func() (ended func() error, err error) { return replace(log) }); err != nil {
				log.Error("no process takes this one's place", "error", err)
			}
		}
	})
	return func() {
		signal.Stop(asked)
		close(asked)
	}
}

// replacer lets one process at a time take this one's place: a second would find the place taken and end, and the supervisor
// would be told that this process, which ends too, is the main one.
type replacer struct {
	wg   sync.WaitGroup
	busy atomic.Bool
}

var errReplaced = errors.New("one is about to already")

// once starts a process unless one that was started has not ended.
func (r *replacer) once(log *slog.Logger, start func() (ended func() error, err error)) error {
	if !r.busy.CompareAndSwap(false, true) {
		return errReplaced
	}
	ended, err := start()
	if err != nil {
		r.busy.Store(false)
		return err
	}
	r.wg.Go(func() {
		if err := ended(); err != nil { // it took nothing, or this process would have ended before
			log.Error("no process takes this one's place", "error", err)
			tell(fmt.Sprintf("MAINPID=%d", os.Getpid()))
		}
		r.busy.Store(false)
	})
	return nil
}

// program is where this process was started from. Asked for later the kernel follows the file: who had moved the old program
// aside before putting the new one in its place would get the old one again.
var program, errProgram = os.Executable()

// replace starts it. It is the main process for systemd from now on: when this one ends before, that is no end of the service.
func replace(log *slog.Logger) (ended func() error, err error) {
	if errProgram != nil {
		return nil, errProgram
	}
	args := os.Args[1:]
	if !slices.Contains(args, "-takeover") {
		args = append([]string{"-takeover"}, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start another process: %w", err)
	}
	tell(fmt.Sprintf("MAINPID=%d", cmd.Process.Pid))
	log.Info("another process is to take this one's place", "number", cmd.Process.Pid)
	return cmd.Wait, nil
}
