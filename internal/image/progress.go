package image

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Phase is what happens to a layer.
type Phase string

// Phases, in the order in which a layer goes through them.
const (
	PhaseWaiting     Phase = "waiting" // for another process that makes the same layer
	PhaseDownloading Phase = "downloading"
	PhaseUnpacking   Phase = "unpacking"
	PhaseConverting  Phase = "converting"
	PhaseCached      Phase = "cached" // it was there
	PhaseDone        Phase = "done"
)

// Progress is how far a layer is.
type Progress struct {
	Layer  int    // from 1, the lowest
	Layers int    // of the image
	Digest string // of the layer
	Phase  Phase
	Done   int64 // bytes of the compressed layer gone through in this phase
	Total  int64 // bytes of the compressed layer; 0 where not known
}

// ProgressWriter shows progress to people. Its Update can be a PullOptions.Progress.
type ProgressWriter struct {
	w   io.Writer
	tty bool

	mu     sync.Mutex
	layers []Progress // the last of each layer; guarded by mu
	drawn  time.Time  // when the line was last drawn; guarded by mu
	shown  bool       // a line is on the terminal; guarded by mu
}

// drawEvery is how often the line on a terminal changes at most.
const drawEvery = 100 * time.Millisecond

// NewProgress writes progress to w: one line that changes if w is a terminal, else a line for every
// layer that begins and ends.
func NewProgress(w io.Writer, tty bool) *ProgressWriter {
	return &ProgressWriter{w: w, tty: tty}
}

// Update notes how far a layer is and shows it.
func (p *ProgressWriter) Update(u Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.Layers != len(p.layers) {
		p.layers = make([]Progress, max(u.Layers, 0))
	}
	if u.Layer < 1 || u.Layer > len(p.layers) {
		return
	}
	changed := p.layers[u.Layer-1].Phase != u.Phase
	p.layers[u.Layer-1] = u
	if !p.tty {
		if changed {
			p.line(u)
		}
		return
	}
	if now := time.Now(); changed || now.Sub(p.drawn) >= drawEvery {
		p.drawn = now
		p.draw()
	}
}

// line writes a line for a layer that has entered a phase.
func (p *ProgressWriter) line(u Progress) {
	size := ""
	if u.Total > 0 && u.Phase != PhaseCached {
		size = " (" + FormatBytes(u.Total) + ")"
	}
	fmt.Fprintf(p.w, "layer %d/%d %s: %s%s\n", u.Layer, u.Layers, shortDigest(u.Digest), u.Phase, size)
}

// draw writes the line of a terminal over the one before.
func (p *ProgressWriter) draw() {
	var ready int
	var done, total int64
	current := Progress{}
	for _, l := range p.layers {
		if l.Phase == PhaseCached || l.Phase == PhaseDone {
			ready++
			continue
		}
		if l.Phase == PhaseDownloading {
			done, total = done+l.Done, total+l.Total
		}
		if l.Phase == PhaseUnpacking || l.Phase == PhaseConverting || (current.Phase == "" && l.Phase != "") {
			current = l
		}
	}
	text := fmt.Sprintf("layers %d/%d", ready, len(p.layers))
	if total > 0 {
		text += fmt.Sprintf("  downloading %s / %s", FormatBytes(done), FormatBytes(total))
	}
	switch current.Phase {
	case PhaseUnpacking, PhaseConverting, PhaseWaiting:
		text += fmt.Sprintf("  %s %s", current.Phase, shortDigest(current.Digest))
		if current.Phase == PhaseUnpacking && current.Total > 0 {
			text += fmt.Sprintf(" %d%%", min(100, current.Done*100/current.Total))
		}
	}
	// Back to the first column, and clear to the end of the line.
	fmt.Fprintf(p.w, "\r%s\x1b[K", text)
	p.shown = true
}

// Close leaves the terminal clean for what is written next.
func (p *ProgressWriter) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
