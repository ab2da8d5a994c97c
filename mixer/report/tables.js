// A click on a heading of a table of classes or confusions sorts its rows by that column, and a
// second click turns them round. Without this script the tables stay as they are written.
'use strict';
(() => {
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = content => parseFloat(content.replace(/[,\s]/g, ''));
  const isEmpty = content => content === '' || content === '-';

  for (const table of document.querySelectorAll('.tall table')) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((heading, column, headings) => {
      const isNumber = heading.classList.contains('num');
      const sort = () => {
        const falls = heading.ariaSort === 'ascending';
        headings.forEach(other => { other.ariaSort = null; });
        heading.ariaSort = falls ? 'descending' : 'ascending';
        const compare = (one, other) => {
          const [a, b] = [text(one, column), text(other, column)];
          if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);  // these come last
          const order = isNumber ? number(a) - number(b) : a.localeCompare(b);
          return falls ? -order : order;
        };
        body.append(...[...body.rows].sort(compare));
      };
      heading.tabIndex = 0;
      heading.style.cursor = 'pointer';
      heading.addEventListener('click', sort);
      heading.addEventListener('keydown', event => event.key === 'Enter' && sort());
    });
  }
})();
