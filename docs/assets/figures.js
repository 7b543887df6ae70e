// A figure that is no link already leads to itself, in full size.
document$.subscribe(() => {
  for (const image of document.querySelectorAll("article p > img")) {
    const link = document.createElement("a");
    link.href = image.src;
    image.replaceWith(link);
    link.append(image);
  }
});
