package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// child is one process of the sandbox. It can be killed, stopped, paused, resumed and started by name;
// one that dies by itself is reported and not restarted.
type child struct {
	name, region string
	command      []string
	env          []string
	logFile      string

	mu      sync.Mutex // guards what follows; never held while waiting for the process
	process *os.Process
	done    chan struct{} // closed when the process has ended
	meant   bool          // its end was asked for
}

func (c *child) start(log *slog.Logger) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		return fmt.Errorf("%s runs already, as process %d", c.name, c.process.Pid)
	}
	return c.launch(log)
}

// replace starts another process in this one's place, which takes its sockets. This one ends when what goes on in it has ended.
func (c *child) replace(log *slog.Logger) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return fmt.Errorf("%s does not run", c.name)
	}
	return c.launch(log, "-takeover")
}

// launch is called with mu held.
func (c *child) launch(log *slog.Logger, more ...string) error {
	if err := os.MkdirAll(filepath.Dir(c.logFile), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(c.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(c.command[0], append(slices.Clone(c.command[1:]), more...)...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = out, out
	// Its own group, so that the terminal's Ctrl-C reaches the sandbox alone, which then stops all in order;
	// and it dies with the sandbox, even one that is killed.
	cmd.SysProcAttr = childAttributes()
	if err := cmd.Start(); err != nil {
		out.Close()
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	out.Close()
	done := make(chan struct{})
	c.process, c.done, c.meant = cmd.Process, done, false
	go func() {
		err := cmd.Wait()
		c.mu.Lock()
		meant := c.meant
		if c.process == cmd.Process {
			c.process = nil
		} else {
			meant = err == nil // it was replaced
		}
		c.mu.Unlock()
		close(done)
		if !meant {
			log.Warn("child ended by itself; it is not restarted", "name", c.name, "error", fmt.Sprint(err), "log", c.logFile)
		}
	}()
	return nil
}

func (c *child) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return 0
	}
	return c.process.Pid
}

// signal sends sig; when the signal is meant to end the process it waits for the end, at most for patience.
func (c *child) signal(ctx context.Context, sig syscall.Signal, ends bool, patience time.Duration) error {
	c.mu.Lock()
	if c.process == nil {
		c.mu.Unlock()
		return fmt.Errorf("%s does not run", c.name)
	}
	c.meant = c.meant || ends
	err, done := c.process.Signal(sig), c.done
	c.mu.Unlock()
	if err != nil || !ends {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("%s has not ended %s after %s", c.name, patience, sig)
	}
}

// end asks, waits, and then insists.
func (c *child) end(patience time.Duration) {
	ctx := context.Background()
	_ = c.signal(ctx, syscall.SIGCONT, false, 0) // a paused process cannot hear SIGTERM
	if err := c.signal(ctx, syscall.SIGTERM, true, patience); err != nil {
		_ = c.signal(ctx, syscall.SIGKILL, true, 5*time.Second)
	}
}
