// Command model checks the Spin models of the border (border.pml, hop.pml): with every guard on, all their states are
// searched and none breaks the border; with each guard taken away, a way to break it is found; and what must be possible
// is reached, so that a model in which nothing moves proves nothing. DESIGN.md says what stands for what.
//
// It runs spin and a C compiler in a directory of its own under the system's temporary one, one search at a time, each
// bounded in memory and time. It touches nothing else, and nothing survives it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"time"
)

func main() {
	list := flag.Bool("list", false, "print the searches and end")
	run := flag.String("run", ".", "only searches whose name matches")
	show := flag.Bool("show", false, "print the steps of what is found")
	flag.Parse()
	only, err := regexp.Compile(*run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if *list {
		for _, s := range searches {
			fmt.Printf("%-34s %-8s %s\n", s.Name, s.Want, s.Why)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if missing := lacks(); missing != "" {
		fmt.Fprintln(os.Stderr, missing)
		os.Exit(1)
	}
	began, n, wrong := time.Now(), 0, 0
	for _, s := range searches {
		if !only.MatchString(s.Name) || ctx.Err() != nil {
			continue
		}
		n++
		found, err := s.search(ctx, *show)
		verdict := "ok"
		if err == nil {
			err = s.judge(found)
		}
		if err != nil {
			wrong++
			verdict = "WRONG: " + err.Error()
		}
		fmt.Printf("%-34s %-8s %11d states %5d MiB %6.1f s  %s\n", s.Name, s.Want, found.States, found.MiB, found.Took.Seconds(), verdict)
		if *show && found.Steps != "" {
			fmt.Println(found.Steps)
		}
	}
	fmt.Printf("%d searches in %s, %d wrong\n", n, time.Since(began).Round(time.Second), wrong)
	if wrong > 0 || n == 0 || ctx.Err() != nil {
		os.Exit(1)
	}
}
